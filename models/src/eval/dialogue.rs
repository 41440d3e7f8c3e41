//! Dialogues of HH-RLHF (Bai et al. 2022, arXiv 2204.05862): two whole ones a row, which part
//! where the assistant's answers differ.

use crate::template::Message;

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// The turns of a dialogue, without the white space around them; None if it does not begin with a
/// speaker. What one speaker says in several turns without an answer is one turn, because templates
/// want speakers to take turns.
pub fn dialogue(text: &str) -> Option<Vec<Message>> {
    let mut turns: Vec<Message> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (role, said) = match (rest.strip_prefix(HUMAN), rest.strip_prefix(ASSISTANT)) {
            (Some(said), _) => ("user", said),
            (None, Some(said)) => ("assistant", said),
            (None, None) => return None,
        };
        let ends = [said.find(HUMAN), said.find(ASSISTANT)];
        let end = ends.into_iter().flatten().min().unwrap_or(said.len());
        let content = said[..end].trim();
        match turns.last_mut() {
            Some(last) if last.role == role => {
                last.content.push_str("\n\n");
                last.content.push_str(content);
            }
            _ => turns.push(Message::new(role, content)),
        }
        rest = &said[end..];
    }
    (!turns.is_empty()).then_some(turns)
}

/// The turns that two conversations share, and what the assistant says next in each; None if the
/// next turn of either is no answer.
pub fn part(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
) -> Option<(Vec<Message>, String, String)> {
    let shorter = chosen.len().min(rejected.len());
    let shared = chosen
        .iter()
        .zip(&rejected)
        .take_while(|(a, b)| a.role == b.role && a.content == b.content)
        .count();
    // Two answers that are the same are turns, too.
    let shared = shared.min(shorter.saturating_sub(1));
    let answer = |turns: &mut Vec<Message>| match turns.get_mut(shared) {
        Some(turn) if turn.role == "assistant" => Some(std::mem::take(&mut turn.content)),
        _ => None,
    };
    let (preferred, other) = (answer(&mut chosen)?, answer(&mut rejected)?);
    chosen.truncate(shared);
    Some((chosen, preferred, other))
}

/// What OpenFedLLM's `split_hh` (utils/process_dataset.py) makes of two dialogues: the turns they
/// share and both answers.
///
/// It cuts at the first character that differs, not at a turn: words that both answers begin with
/// are in neither prompt nor answers. The answers keep the character before the cut, which is
/// meant to be the space after `Assistant:`.
pub fn part_at_character(chosen: &str, rejected: &str) -> (Vec<Message>, String, String) {
    const HUMAN: &str = "\n\nHuman: ";
    const ASSISTANT: &str = "\n\nAssistant: ";
    let common: String = chosen
        .chars()
        .zip(rejected.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect();
    let mut prompt = Vec::new();
    // Whatever the first characters are, it takes them for the first speaker's mark.
    let mut rest: String = common.chars().skip(HUMAN.len()).collect();
    for (role, mark) in [("user", ASSISTANT), ("assistant", HUMAN)].iter().cycle() {
        let Some(end) = rest.find(mark) else {
            break;
        };
        prompt.push(Message::new(*role, &rest[..end]));
        rest.drain(..end + mark.len());
    }
    let cut = common.chars().count();
    (prompt, from_before(chosen, cut), from_before(rejected, cut))
}

/// Python's `text[cut - 1:]`, where -1 means the last character.
fn from_before(text: &str, cut: usize) -> String {
    match cut {
        0 => text.chars().last().into_iter().collect(),
        _ => text.chars().skip(cut - 1).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(r, c)| Message::new(*r, *c)).collect()
    }

    #[test]
    fn dialogues_part_at_the_answer() {
        let turns = |answer| dialogue(&format!("\n\nHuman: a\n\nHuman: b\n\nAssistant: {answer}"));
        let (chosen, rejected) = (turns("yes, x").unwrap(), turns("yes, y").unwrap());
        let expected = (said(&[("user", "a\n\nb")]), "yes, x", "yes, y");
        let (prompt, chosen, rejected) = part(chosen, rejected).unwrap();
        assert_eq!((prompt, &chosen[..], &rejected[..]), expected);
        assert_eq!(dialogue("a"), None);
        assert_eq!(part(said(&[("user", "a")]), said(&[("user", "b")])), None);
    }

    #[test]
    fn the_reference_parts_at_a_character() {
        let text = |answer| format!("\n\nHuman: a\n\nAssistant: {answer}");
        let parted = part_at_character(&text("yes, x"), &text("yes, y"));
        let expected = (said(&[("user", "a")]), " x".to_owned(), " y".to_owned());
        assert_eq!(parted, expected);
    }
}
