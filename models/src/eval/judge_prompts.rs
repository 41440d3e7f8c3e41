//! The prompts that judges of conversations are asked with, to the letter: ratings are comparable only
//! between equal prompts.
//!
//! Source: lm-sys/FastChat, fastchat/llm_judge/data/judge_prompts.jsonl (Zheng et al. 2023, arXiv
//! 2306.05685), Apache-2.0; those of FedLLM-Bench from rui-ye/FedLLM-Bench, evaluation/open_ended (Ye
//! et al. 2024, arXiv 2406.04845), Apache-2.0.

/// A judge's prompt.
#[derive(Debug)]
pub(super) struct JudgePrompt {
    /// What the judge is told first.
    pub(super) system: &'static str,
    /// What the judge is asked; a name in braces stands for what is put in.
    pub(super) template: &'static str,
}

/// `single-v1`: rates the answer to one question.
pub(super) const SINGLE: JudgePrompt = JudgePrompt {
    system: "You are a helpful assistant.",
    template: "[Instruction]\n\
     Please act as an impartial judge and evaluate the quality of the response provided by an AI \
     assistant to the user question displayed below. Your evaluation should consider factors \
     such as the helpfulness, relevance, accuracy, depth, creativity, and level of detail of the \
     response. Begin your evaluation by providing a short explanation. Be as objective as \
     possible. After providing your explanation, you must rate the response on a scale of 1 to \
     10 by strictly following this format: \"[[rating]]\", for example: \"Rating: [[5]]\".\n\n\
     [Question]\n\
     {question}\n\n\
     [The Start of Assistant's Answer]\n\
     {answer}\n\
     [The End of Assistant's Answer]",
};

/// `single-math-v1`: rates the answer to one question beside a reference answer.
pub(super) const SINGLE_MATH: JudgePrompt = JudgePrompt {
    system: "You are a helpful assistant.",
    template: "[Instruction]\n\
     Please act as an impartial judge and evaluate the quality of the response provided by an AI \
     assistant to the user question displayed below. Your evaluation should consider correctness \
     and helpfulness. You will be given a reference answer and the assistant's answer. Begin \
     your evaluation by comparing the assistant's answer with the reference answer. Identify and \
     correct any mistakes. Be as objective as possible. After providing your explanation, you \
     must rate the response on a scale of 1 to 10 by strictly following this format: \
     \"[[rating]]\", for example: \"Rating: [[5]]\".\n\n\
     [Question]\n\
     {question}\n\n\
     [The Start of Reference Answer]\n\
     {ref_answer_1}\n\
     [The End of Reference Answer]\n\n\
     [The Start of Assistant's Answer]\n\
     {answer}\n\
     [The End of Assistant's Answer]",
};

/// `single-v1-multi-turn`: rates the answer to the second question of two.
pub(super) const SECOND: JudgePrompt = JudgePrompt {
    system: "Please act as an impartial judge and evaluate the quality of the response provided by an AI \
     assistant to the user question displayed below. Your evaluation should consider factors \
     such as the helpfulness, relevance, accuracy, depth, creativity, and level of detail of the \
     response. You evaluation should focus on the assistant's answer to the second user \
     question. Begin your evaluation by providing a short explanation. Be as objective as \
     possible. After providing your explanation, you must rate the response on a scale of 1 to \
     10 by strictly following this format: \"[[rating]]\", for example: \"Rating: [[5]]\".\n\n",
    template: "<|The Start of Assistant A's Conversation with User|>\n\n\
     ### User:\n\
     {question_1}\n\n\
     ### Assistant A:\n\
     {answer_1}\n\n\
     ### User:\n\
     {question_2}\n\n\
     ### Assistant A:\n\
     {answer_2}\n\n\
     <|The End of Assistant A's Conversation with User|>",
};

/// `single-math-v1-multi-turn`: the same beside reference answers.
pub(super) const SECOND_MATH: JudgePrompt = JudgePrompt {
    system: "Please act as an impartial judge and evaluate the quality of the response provided by an AI \
     assistant to the user question. Your evaluation should consider correctness and \
     helpfulness. You will be given a reference answer and the assistant's answer. You \
     evaluation should focus on the assistant's answer to the second question. Begin your \
     evaluation by comparing the assistant's answer with the reference answer. Identify and \
     correct any mistakes. Be as objective as possible. After providing your explanation, you \
     must rate the response on a scale of 1 to 10 by strictly following this format: \
     \"[[rating]]\", for example: \"Rating: [[5]]\".\n\n",
    template: "<|The Start of Reference Answer|>\n\n\
     ### User:\n\
     {question_1}\n\n\
     ### Reference answer:\n\
     {ref_answer_1}\n\n\
     ### User:\n\
     {question_2}\n\n\
     ### Reference answer:\n\
     {ref_answer_2}\n\n\
     <|The End of Reference Answer|>\n\n\n\
     <|The Start of Assistant A's Conversation with User|>\n\n\
     ### User:\n\
     {question_1}\n\n\
     ### Assistant A:\n\
     {answer_1}\n\n\
     ### User:\n\
     {question_2}\n\n\
     ### Assistant A:\n\
     {answer_2}\n\n\
     <|The End of Assistant A's Conversation with User|>",
};

/// FedLLM-Bench's for its chats: rates an answer.
pub(super) const FED_CHAT: JudgePrompt = JudgePrompt {
    system: "You are a helpful assistant, that rates models by the quality of their answers.",
    template: "[Instruction]\n\
     Please act as an impartial judge and evaluate the quality of the response provided by an AI \
     assistant to the user's instruction displayed below. Your evaluation should consider \
     factors such as the helpfulness, relevance, accuracy, depth, creativity, and level of \
     detail of the response. Begin your evaluation by providing a short explanation. Be as \
     objective as possible. After providing your explanation, you must rate the response on a \
     scale of 1 to 10 by strictly following this format: \"[[rating]]\", for example: \"Rating: \
     [[5]]\". \n\n\
     [Question]\n\
     {question}\n\n\
     [The Start of Assistant's Answer]\n\
     {answer}\n\
     [The End of Assistant's Answer]",
};

/// FedLLM-Bench's for Fed-Aya: rates an answer beside that of a human.
pub(super) const FED_AYA: JudgePrompt = JudgePrompt {
    system: "You are a helpful assistant, that rates models by the quality of their answers.",
    template: "[Instruction]\n\
     Please act as an impartial judge and evaluate the quality of the response provided by an AI \
     assistant to the user question displayed below. A good answer should follow these rules: \n\
     1.It should be in the same language as the question. \n\
     2. It should answer the request in the instruction. \n\
     3.It should be factually and semantically comprehensible. \n\
     4. It should be grammatically correct and fluent. \n\
     Begin your evaluation by providing a short explanation. Be as objective as possible. After \
     providing your explanation, you must rate the response on a scale of 1 to 10 by strictly \
     following this format: \"[[rating]]\", for example: \"Rating: [[5]]\".A human annotated \
     answer is given for reference.\n\n\
     [Question]\n\
     {question}\n\n\
     [The Start of Assistant's Answer]\n\
     {answer}\n\
     [The End of Assistant's Answer]\n\n\
     [Reference]\n\
     {reference}",
};
