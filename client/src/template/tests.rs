//! The templates against texts and ids that other programs wrote.

use std::path::Path;

use super::*;

pub(super) const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != \
    'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
    Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ \
    '<|im_start|>assistant\n' }}{% endif %}";

const MARKED: &str = "{% for message in messages %}{{ message.role + ': ' }}{% if message.role == \
    'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% else %}\
    {{ message.content }}{% endif %}{{ '\n' }}{% endfor %}";

/// Of SmolLM2's tokenizer (Apache-2.0) the tokens and merges that the texts here need, with their
/// ids. BPE applies the best merge that it can, so leaving out merges that are never applied
/// changes nothing.
pub(super) fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/smollm2_excerpt.json");
    Tokenizer::from_file(&path, Some("<|im_start|>"), Some("<|im_end|>")).unwrap()
}

fn instruction(instruction: &str, input: &str, output: &str) -> Record {
    Record::Instruction {
        instruction: instruction.to_owned(),
        input: input.to_owned(),
        output: output.to_owned(),
    }
}

fn conversation(turns: &[(&str, &str)]) -> Record {
    Record::Conversation {
        messages: turns.iter().map(|(r, c)| Message::new(*r, *c)).collect(),
        learn_from: 0,
        tools: None,
    }
}

/// The text that is learned.
fn learned(tokenizer: &Tokenizer, tokens: &Tokens) -> String {
    let labels: Vec<u32> = std::iter::zip(&tokens.ids, &tokens.loss)
        .filter(|(_, mark)| **mark == 1)
        .map(|(id, _)| *id)
        .collect();
    tokenizer.decode(&labels, false).unwrap()
}

#[test]
fn alpaca_gives_the_ids_and_labels_of_the_reference() {
    // transformers' tokenizer, OpenFedLLM's template and TRL 0.7's search for the response.
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../testdata/b_sft.json")).unwrap();
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Alpaca, &tokenizer, None).unwrap();
    assert_eq!(template.response, [14212, 42]);
    assert_eq!(rows.len(), 16);
    for row in rows {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        let record = instruction(&text("instruction"), "", &text("output"));
        let tokens = template.apply(&record, 512).unwrap();
        let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
        let from = row["labels_from"].as_u64().unwrap() as usize;
        assert_eq!(tokens.ids, ids, "{}", text("instruction"));
        let loss: Vec<u8> = (0..ids.len()).map(|i| u8::from(i >= from)).collect();
        assert_eq!(tokens.loss, loss);
        assert!(!tokens.truncated);
    }
}

#[test]
fn texts_are_those_of_the_reference() {
    let samples: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../testdata/templates.json")).unwrap();
    let tokenizer = tokenizer();
    for name in [TemplateName::Alpaca, TemplateName::Vicuna] {
        let template = Template::new(name, &tokenizer, None).unwrap();
        for sample in &samples {
            let text = |field: &str| sample[field].as_str().unwrap();
            let record = instruction(text("instruction"), text("input"), text("output"));
            let tokens = template.apply(&record, 512).unwrap();
            let written = tokenizer.decode(&tokens.ids, false).unwrap();
            assert_eq!(written, text(name.name()).replace("</s>", "<|im_end|>"));
            let answer = format!(" {}<|im_end|>", text("output"));
            assert_eq!(learned(&tokenizer, &tokens), answer);
        }
    }
}

#[test]
fn chat_learns_each_answer_and_its_end() {
    let tokenizer = tokenizer();
    let chat = ChatTemplate::new(CHATML, "<|im_start|>", "<|im_end|>").unwrap();
    let template = Template::new(TemplateName::Chat, &tokenizer, Some(&chat)).unwrap();
    let record = conversation(&[
        ("user", "What is 17 plus 26?"),
        ("assistant", "17 plus 26 is 43."),
    ]);
    let single = template.apply(&record, 512).unwrap();
    assert_eq!(learned(&tokenizer, &single), "17 plus 26 is 43.<|im_end|>");
    let text = chat.render(
        &[
            Message::new("user", "What is 17 plus 26?"),
            Message::new("assistant", "17 plus 26 is 43."),
        ],
        false,
    );
    let ids = tokenizer.encode(&text.unwrap(), false).unwrap();
    assert_eq!(
        ids[..ids.len() - 1],
        single.ids,
        "all but the line end after the last turn"
    );
    assert_eq!(single.ids.last(), Some(&2));

    let record = conversation(&[
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", " \n"),
        ("user", "Three?"),
        ("assistant", "3"),
    ]);
    let several = template.apply(&record, 512).unwrap();
    assert_eq!(learned(&tokenizer, &several), "1<|im_end|>3<|im_end|>");
    assert_eq!(
        template.apply(
            &instruction("What is 17 plus", "26?", "17 plus 26 is 43."),
            512
        ),
        Ok(single),
        "an instruction is a conversation of one question"
    );
}

#[test]
fn chat_learns_only_the_completion() {
    let tokenizer = tokenizer();
    let chat = ChatTemplate::new(CHATML, "", "").unwrap();
    let template = Template::new(TemplateName::Chat, &tokenizer, Some(&chat)).unwrap();
    let Record::Conversation {
        messages, tools, ..
    } = conversation(&[
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ])
    else {
        panic!()
    };
    let record = Record::Conversation {
        messages,
        learn_from: 3,
        tools,
    };
    let tokens = template.apply(&record, 512).unwrap();
    assert_eq!(learned(&tokenizer, &tokens), "d<|im_end|>");
}

#[test]
fn chat_learns_what_the_template_marks() {
    let tokenizer = tokenizer();
    let chat = ChatTemplate::new(MARKED, "", "<|im_end|>").unwrap();
    let template = Template::new(TemplateName::Chat, &tokenizer, Some(&chat)).unwrap();
    let record = conversation(&[
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]);
    let tokens = template.apply(&record, 512).unwrap();
    assert_eq!(learned(&tokenizer, &tokens), "b<|im_end|>d<|im_end|>");
    let text = tokenizer.decode(&tokens.ids, false).unwrap();
    assert_eq!(
        text,
        "user: a\nassistant: b<|im_end|>\nuser: c\nassistant: d<|im_end|>"
    );
}

#[test]
fn templates_that_rewrite_history_are_refused() {
    let tokenizer = tokenizer();
    let source =
        "{% for m in messages %}{{ m.content if loop.last else m.content | upper }}{% endfor %}";
    let chat = ChatTemplate::new(source, "", "").unwrap();
    let template = Template::new(TemplateName::Chat, &tokenizer, Some(&chat)).unwrap();
    let record = conversation(&[
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]);
    let problem = template.apply(&record, 512).unwrap_err();
    assert_eq!(problem.reason(), "refused by the chat template");
    assert!(!problem.is_harmless());
}

#[test]
fn plain_learns_texts_whole_and_completions_alone() {
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Plain, &tokenizer, None).unwrap();
    let tokens = template
        .apply(&Record::Text("17 plus 26".to_owned()), 512)
        .unwrap();
    assert_eq!(tokens.ids.len(), tokens.loss.len());
    assert_eq!(tokens.loss[0], 0, "nothing predicts the first token");
    assert!(tokens.loss[1..].iter().all(|&mark| mark == 1));
    assert_eq!(tokens.ids.last(), Some(&2));
    let record = Record::Completion {
        prompt: "17 plus 26 is".to_owned(),
        completion: " 43.".to_owned(),
    };
    let tokens = template.apply(&record, 512).unwrap();
    assert_eq!(learned(&tokenizer, &tokens), " 43.<|im_end|>");
    let problem = template.apply(&instruction("a", "", "b"), 512).unwrap_err();
    assert_eq!(
        problem.to_string(),
        "the template `plain` cannot write an instruction"
    );
}

#[test]
fn long_rows_lose_their_end_and_never_their_whole_answer() {
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Alpaca, &tokenizer, None).unwrap();
    let record = instruction("What is 17 plus 26?", "", "17 plus 26 is 43.");
    let whole = template.apply(&record, 512).unwrap();
    let prompt = whole.loss.iter().take_while(|&&mark| mark == 0).count();
    for max_tokens in 1..whole.ids.len() + 2 {
        match template.apply(&record, max_tokens) {
            Ok(cut) => {
                assert!(max_tokens > prompt);
                assert_eq!(cut.ids, whole.ids[..max_tokens.min(whole.ids.len())]);
                assert_eq!(cut.truncated, max_tokens < whole.ids.len());
            }
            Err(problem) => {
                assert!(max_tokens <= prompt, "{max_tokens}: {problem}");
                assert!(problem.is_harmless());
                assert_eq!(problem.reason(), "prompt too long");
            }
        }
    }
}

#[test]
fn the_last_response_mark_counts_as_in_the_reference() {
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Alpaca, &tokenizer, None).unwrap();
    let record = instruction("a", "", "b\n\n### Response: c");
    let tokens = template.apply(&record, 512).unwrap();
    assert_eq!(learned(&tokenizer, &tokens), " c<|im_end|>");
}

#[test]
fn digests_tell_templates_apart() {
    let tokenizer = tokenizer();
    let one = ChatTemplate::new(CHATML, "", "").unwrap();
    let other = ChatTemplate::new(MARKED, "", "").unwrap();
    let digest = |name, chat| Template::new(name, &tokenizer, chat).unwrap().digest();
    let mut digests = vec![
        digest(TemplateName::Alpaca, None),
        digest(TemplateName::Vicuna, None),
        digest(TemplateName::Plain, None),
        digest(TemplateName::Chat, Some(&one)),
        digest(TemplateName::Chat, Some(&other)),
    ];
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 5);
    assert!(matches!(
        Template::new(TemplateName::Chat, &tokenizer, None),
        Err(TemplateError::NoChatTemplate)
    ));
}

#[test]
fn names_parse_back() {
    for name in TemplateName::ALL {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    assert!(
        "llama"
            .parse::<TemplateName>()
            .unwrap_err()
            .contains("alpaca")
    );
}
