//! Preferences against texts and ids that other programs wrote, and against their limits.

use std::path::Path;

use fedllm_models::template::ChatTemplate;
use fedllm_models::tokenizer::Tokenizer;
use fedllm_shared::Compat;
use serde_json::{Value, json};

use super::*;
use crate::readers::Format;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/smollm2_excerpt.json");
    Tokenizer::from_file(&path, Some("<|im_start|>"), Some("<|im_end|>")).unwrap()
}

fn preference(prompt: Prompt, chosen: &str, rejected: &str) -> Record {
    Record::Preference {
        prompt,
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
        verbatim: false,
    }
}

fn question(text: &str) -> Prompt {
    Prompt::Text(text.to_owned())
}

fn turns(turns: &[(&str, &str)]) -> Prompt {
    Prompt::Messages(turns.iter().map(|(r, c)| Message::new(*r, *c)).collect())
}

/// What the rows say: the prompt, and both answers.
fn texts(tokenizer: &Tokenizer, pair: &Pair) -> [String; 3] {
    let said = |tokens: &Tokens, mark: u8| {
        let ids: Vec<u32> = std::iter::zip(&tokens.ids, &tokens.loss)
            .filter(|(_, found)| **found == mark)
            .map(|(id, _)| *id)
            .collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert_eq!(said(&pair.chosen, 0), said(&pair.rejected, 0));
    [
        said(&pair.chosen, 0),
        said(&pair.chosen, 1),
        said(&pair.rejected, 1),
    ]
}

#[test]
fn vicuna_gives_the_ids_and_labels_of_the_reference() {
    // OpenFedLLM's conversation and TRL's split into prompt and answers, tokenized by transformers.
    let rows: Vec<Value> =
        serde_json::from_str(include_str!("../../../testdata/d_dpo.json")).unwrap();
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Vicuna, &tokenizer, None).unwrap();
    assert_eq!(rows.len(), 8);
    for row in rows {
        let text = |field: &str| row[field].as_str().unwrap();
        let record = preference(question(text("prompt")), text("chosen"), text("rejected"));
        let pair = template.apply_pair(&record, 512).unwrap();
        let from = row["labels_from"].as_u64().unwrap() as usize;
        for (tokens, side) in [
            (&pair.chosen, "chosen_ids"),
            (&pair.rejected, "rejected_ids"),
        ] {
            let ids: Vec<u32> = serde_json::from_value(row[side].clone()).unwrap();
            let loss: Vec<u8> = (0..ids.len()).map(|i| u8::from(i >= from)).collect();
            assert_eq!((&tokens.ids, &tokens.loss), (&ids, &loss), "{row}");
        }
        assert!(!pair.is_truncated());
    }
}

#[test]
fn dialogues_are_cut_and_written_as_the_reference_does_it() {
    let samples: Vec<Value> =
        serde_json::from_str(include_str!("../../../testdata/hh.json")).unwrap();
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Vicuna, &tokenizer, None).unwrap();
    for sample in &samples {
        let fields = sample["source"].as_object().unwrap();
        assert_eq!(Format::detect(fields), Ok(Format::Hh));
        let record = Format::Hh.record_as(fields, Compat::OpenFedLlm).unwrap();
        let pair = template.apply_pair(&record, 512).unwrap();
        let expected = ["prompt", "chosen", "rejected"].map(|field| &sample["result"][field]);
        let [prompt, chosen, rejected] = texts(&tokenizer, &pair);
        // `</s>` is no token here, and stays the text that it is.
        assert_eq!(json!(prompt), *expected[0]);
        assert_eq!(json!(chosen.trim_end_matches("<|im_end|>")), *expected[1]);
        assert_eq!(json!(rejected.trim_end_matches("<|im_end|>")), *expected[2]);

        let sound = Format::Hh.record(fields).unwrap();
        let [sound, ..] = texts(&tokenizer, &template.apply_pair(&sound, 512).unwrap());
        assert_eq!(sound, prompt.replace("</s>", "<|im_end|>"));
    }
    // The third pair's answers begin alike, and keep what they share.
    let fields = samples[2]["source"].as_object().unwrap();
    let record = Format::Hh.record(fields).unwrap();
    let [_, chosen, rejected] = texts(&tokenizer, &template.apply_pair(&record, 512).unwrap());
    assert_eq!(
        chosen,
        " I can't see the sky, but a forecast will tell you.<|im_end|>"
    );
    assert_eq!(rejected, " I can't be bothered.<|im_end|>");
}

#[test]
fn each_template_writes_prompts_in_its_own_way() {
    let tokenizer = tokenizer();
    let chat = ChatTemplate::new(CHATML, "", "").unwrap();
    let chat = Some(&chat);
    let one = turns(&[("user", "Two?")]);
    let several = turns(&[("user", "One?"), ("assistant", "1"), ("user", "Two?")]);
    let written = |name, prompt: &Prompt| {
        let template = Template::new(name, &tokenizer, chat).unwrap();
        let record = preference(prompt.clone(), "2", "3");
        template
            .apply_pair(&record, 512)
            .map(|pair| texts(&tokenizer, &pair))
    };
    let system = VICUNA_SYSTEM;
    assert_eq!(
        written(TemplateName::Vicuna, &several).unwrap(),
        [
            format!("{system}USER: One? ASSISTANT: 1<|im_end|>USER: Two? ASSISTANT:"),
            " 2<|im_end|>".to_owned(),
            " 3<|im_end|>".to_owned(),
        ]
    );
    assert_eq!(
        written(TemplateName::Vicuna, &one),
        written(TemplateName::Vicuna, &question("Two?"))
    );
    assert_eq!(
        written(TemplateName::Chat, &several).unwrap(),
        [
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n\
             <|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n",
            "2<|im_end|>",
            "3<|im_end|>",
        ]
    );
    let [prompt, ..] = written(TemplateName::Alpaca, &one).unwrap();
    assert!(
        prompt.ends_with("### Instruction:\nTwo? \n\n### Response:"),
        "{prompt}"
    );
    assert_eq!(
        written(TemplateName::Plain, &question("Two? ")).unwrap(),
        ["Two? ", "2<|im_end|>", "3<|im_end|>"]
    );
    for (name, prompt) in [
        (TemplateName::Alpaca, &several),
        (TemplateName::Plain, &several),
        (TemplateName::Vicuna, &turns(&[("system", "Be brief.")])),
    ] {
        let problem = written(name, prompt).unwrap_err();
        assert_eq!(problem.reason(), "not for this template", "{name}");
    }
    let verbatim = Record::Preference {
        prompt: one,
        chosen: " 2".to_owned(),
        rejected: " 3".to_owned(),
        verbatim: true,
    };
    let template = Template::new(TemplateName::Chat, &tokenizer, chat).unwrap();
    assert_eq!(
        template.apply_pair(&verbatim, 512).unwrap_err().reason(),
        "not for this template"
    );
    assert_eq!(
        template.apply(&verbatim, 512).unwrap_err().to_string(),
        "the template `chat` cannot write a preference as one row"
    );
}

#[test]
fn long_pairs_keep_half_for_answers_and_the_end_of_their_prompt() {
    let prompt: Vec<u32> = (100..120).collect();
    let (long, short): (Vec<u32>, Vec<u32>) = ((200..215).collect(), vec![300, 301]);
    for max_tokens in 2..40 {
        let pair = fit(&prompt, 0, [&long, &short], max_tokens).unwrap();
        let answer = |tokens: &Tokens| tokens.loss.iter().filter(|&&mark| mark == 1).count();
        let kept = pair.chosen.ids.len() - answer(&pair.chosen);
        assert!(pair.chosen.ids.len() <= max_tokens);
        assert!(answer(&pair.chosen) >= long.len().min(max_tokens / 2));
        assert_eq!(
            pair.chosen.ids[..kept],
            prompt[prompt.len() - kept..],
            "{max_tokens}"
        );
        assert_eq!(pair.rejected.ids[..kept], pair.chosen.ids[..kept]);
        assert_eq!(
            pair.rejected.ids[kept..],
            short[..short.len().min(answer(&pair.chosen))]
        );
        assert_eq!(pair.is_truncated(), max_tokens < prompt.len() + long.len());
        // Nothing is cut that had room.
        let full = pair.chosen.ids.len() == max_tokens || !pair.is_truncated();
        assert!(full, "{max_tokens}");
    }
    assert!(fit(&prompt, 0, [&long, &short], 1).is_err());
}

#[test]
fn a_cut_prompt_keeps_its_beginning_of_text() {
    let prompt: Vec<u32> = (100..120).collect();
    let pair = fit(&prompt, 1, [&[7, 8], &[9]], 8).unwrap();
    assert_eq!(pair.chosen.ids, [100, 115, 116, 117, 118, 119, 7, 8]);
    assert_eq!(pair.rejected.ids, [100, 115, 116, 117, 118, 119, 9]);
    assert!(pair.rejected.truncated);
    assert!(
        fit(&prompt, 1, [&[7, 8], &[9]], 2).is_err(),
        "BOS alone asks nothing"
    );
    // Without a prompt nothing predicts the first token of an answer.
    let pair = fit(&[], 0, [&[7, 8], &[9, 8]], 8).unwrap();
    assert_eq!(pair.chosen.loss, [0, 1]);
    assert!(fit(&[], 0, [&[7, 8], &[9]], 8).is_err());

    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Plain, &tokenizer, None).unwrap();
    assert!(template.lead.is_empty(), "this tokenizer adds no BOS");
    assert_eq!(template.bos_tokens(&[1, 5, 6]), 1);
    assert_eq!(template.bos_tokens(&[1, 5, 1]), 0, "here it begins turns");
    assert_eq!(template.bos_tokens(&[5, 1]), 0);
}

#[test]
fn answers_that_only_differ_where_they_are_cut_are_no_preference() {
    let tokenizer = tokenizer();
    let template = Template::new(TemplateName::Plain, &tokenizer, None).unwrap();
    let record = preference(question("17 plus 26 is"), " 43.", " 43?");
    assert!(template.apply_pair(&record, 512).is_ok());
    assert_eq!(
        template.apply_pair(&record, 4),
        Err(RowProblem::SameAnswers)
    );
}
