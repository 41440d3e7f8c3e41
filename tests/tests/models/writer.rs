//! Texts that are written together against each text alone.

use burn::tensor::Device;
use fedllm_models::generate::{Generator, Next, Sampling, TextId, Writer};
use fedllm_models::lora::Lora;

use super::golden::Golden;
use super::gpu::gpu;

/// A text to write.
struct Asked {
    prompt: Vec<u32>,
    adapter: Option<usize>,
    sampling: Sampling,
    tokens: usize,
}

/// Prompts of which some begin alike, of several lengths, for the base and for an adapter.
fn asked(texts: u32) -> Vec<Asked> {
    let beginning = |tokens: u32| (0..tokens).map(|i| 3 + i * 7 % 300);
    let ask = |number: u32| Asked {
        prompt: match number % 4 {
            0 => vec![5 + number],
            1 => beginning(40).chain([number]).collect(),
            2 => beginning(60).collect(),
            _ => beginning(70).chain([number, 9, 9]).collect(),
        },
        adapter: (number % 3 == 1).then_some(0),
        sampling: match number % 5 {
            4 => Sampling::Nucleus {
                temperature: 0.8,
                top_p: 0.95,
                seed: u64::from(number),
            },
            _ => Sampling::Greedy,
        },
        tokens: 2 + (number * 5 % 17) as usize,
    };
    (0..texts).map(ask).collect()
}

fn admit(writer: &mut Writer<'_>, asked: &Asked) -> TextId {
    let (adapter, sampling) = (asked.adapter, asked.sampling);
    writer.admit(
        asked.prompt.clone(),
        adapter,
        sampling,
        Some(2),
        asked.tokens,
    )
}

/// Writes all texts, some of which join while others are written.
fn together(writer: &mut Writer<'_>, asked: &[Asked], cache_bytes: usize) -> Vec<Vec<Next>> {
    let mut written: Vec<Vec<Next>> = asked.iter().map(|_| Vec::new()).collect();
    let mut ids: Vec<TextId> = Vec::new();
    let mut passes = 0;
    while ids.len() < asked.len() || writer.texts() > 0 {
        if ids.len() < asked.len() && writer.texts() < Writer::TEXTS && passes % 2 == 0 {
            ids.push(admit(writer, &asked[ids.len()]));
        }
        for next in writer.advance() {
            let number = ids.iter().position(|id| *id == next.text).unwrap();
            written[number].push(next);
        }
        assert!(writer.cache_bytes() <= cache_bytes, "after {passes}");
        passes += 1;
        assert!(passes < 1000, "texts come to an end");
    }
    written
}

/// What each text is alone: its tokens by the simple way, and what is said of them.
fn each_alone(golden: &Golden, adapters: &[Lora], asked: &[Asked]) -> Vec<Vec<Next>> {
    let write = |asked: &Asked| {
        let lora = asked.adapter.map(|adapter| &adapters[adapter]);
        let tokens = Generator::new(&golden.model, lora, &asked.prompt, asked.sampling);
        let tokens: Vec<u32> = tokens.take(asked.tokens).collect();
        let mut writer = Writer::new(&golden.model, adapters, 0);
        admit(&mut writer, asked);
        let mut written = Vec::new();
        while writer.texts() > 0 {
            written.extend(writer.advance());
        }
        assert!(written.iter().map(|next| next.token).eq(tokens));
        written
    };
    asked.iter().map(write).collect()
}

/// Checks some texts with room for so many tokens.
fn check(golden: &Golden, texts: u32, rooms: &[usize], tolerance: f32) {
    let adapters = [golden.lora()];
    let asked = asked(texts);
    let alone = each_alone(golden, &adapters, &asked);
    let config = golden.model.config();
    let token = config.layers * 2 * config.kv_dim() * size_of::<f32>();
    let longest = 90 * token;
    for tokens in rooms {
        let cache_bytes = tokens * token;
        let mut writer = Writer::new(&golden.model, &adapters, cache_bytes);
        let written = together(&mut writer, &asked, cache_bytes.max(longest));
        for ((written, alone), asked) in written.iter().zip(&alone).zip(&asked) {
            assert_eq!((written.len(), alone.len()), (asked.tokens, asked.tokens));
            for (number, (next, alone)) in written.iter().zip(alone).enumerate() {
                assert_eq!(next.token, alone.token, "{tokens}, {:?}", asked.prompt);
                assert_eq!(next.is_last, number + 1 == asked.tokens);
                let (said, alone) = (next.said.as_ref().unwrap(), alone.said.as_ref().unwrap());
                assert!((said.log_prob - alone.log_prob).abs() < tolerance);
                assert_eq!(said.top.len(), 2);
            }
        }
    }
}

#[test]
fn texts_are_the_same_alone_and_in_company() {
    // Gemma has windows and soft caps.
    for name in ["llama", "gemma3"] {
        // Room for all texts, for about two, and for none beside another.
        let rooms = [10_000, 190, 1];
        check(&Golden::load(name, &Device::flex()), 14, &rooms, 1e-4);
    }
}

#[test]
fn gpu_texts_are_the_same_alone_and_in_company() {
    let Some((_turn, gpu)) = gpu() else {
        return;
    };
    check(&Golden::load("gemma3", &gpu), 7, &[190], 2e-3);
}

fn greedy(writer: &mut Writer<'_>, prompt: &[u32], adapter: Option<usize>) -> TextId {
    writer.admit(prompt.to_vec(), adapter, Sampling::Greedy, None, 100)
}

#[test]
fn adapters_take_turns() {
    let golden = Golden::load("llama", &Device::flex());
    let adapters = [golden.lora(), golden.lora()];
    let mut writer = Writer::new(&golden.model, &adapters, 1 << 30);
    for first in 3..8 {
        greedy(&mut writer, &[first, 9], None);
    }
    let (one, other) = (
        greedy(&mut writer, &[3, 9], Some(0)),
        greedy(&mut writer, &[3, 9], Some(1)),
    );
    let mut counts = [0; 3];
    for _ in 0..12 {
        for next in writer.advance() {
            counts[[one, other]
                .iter()
                .position(|id| *id == next.text)
                .unwrap_or(2)] += 1;
        }
    }
    assert_eq!(counts, [4, 4, 5 * 4]);
}

#[test]
fn a_text_that_is_ended_makes_room() {
    let golden = Golden::load("llama", &Device::flex());
    let mut writer = Writer::new(&golden.model, &[], 1);
    let (gone, waiting) = (
        greedy(&mut writer, &[3, 4, 5], None),
        greedy(&mut writer, &[7, 8], None),
    );
    for _ in 0..3 {
        let texts = writer.advance().into_iter().map(|next| next.text);
        assert_eq!(texts.collect::<Vec<_>>(), [gone]);
    }
    let bytes = writer.cache_bytes();
    writer.end(gone);
    writer.end(gone);
    let texts = writer.advance().into_iter().map(|next| next.text);
    assert_eq!(texts.collect::<Vec<_>>(), [waiting]);
    assert!(writer.cache_bytes() < bytes, "what was ended is forgotten");
    writer.end(waiting);
    assert_eq!((writer.texts(), writer.advance().len()), (0, 0));
}

#[test]
fn a_long_prompt_does_not_hold_up_a_text_that_is_written() {
    let golden = Golden::load("llama", &Device::flex());
    let mut writer = Writer::new(&golden.model, &[], 1 << 30);
    let short = greedy(&mut writer, &[3, 4], None);
    writer.advance();
    let prompt: Vec<u32> = (0..2500).map(|i| 3 + i * 11 % 300).collect();
    let long = greedy(&mut writer, &prompt, None);
    for pass in 0..4 {
        let texts = writer.advance().into_iter().map(|next| next.text);
        let texts: Vec<TextId> = texts.collect();
        assert!(texts.contains(&short));
        assert_eq!(texts.contains(&long), pass >= 2, "in parts of a pass");
    }
    // What begins alike is not read again.
    let bytes = writer.cache_bytes();
    greedy(&mut writer, &prompt, None);
    assert_eq!(writer.advance().len(), 3);
    let token = bytes / (2500 + 2 + 5 + 1);
    assert!(writer.cache_bytes() < bytes + 8 * token);
}
