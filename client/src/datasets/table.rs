//! The data sets: one row each.

use fedllm_models::eval::finance::Sentiment;
use fedllm_shared::RowKind::{Examples, Preferences};
use fedllm_shared::{Header, JsonObject, ReadAs};

use super::Files::{AnyOf, FirstOf};
use super::{Dataset, Entry, Fields, Files, Split, finance, rows};
use crate::readers::RowProblem;

/// Everything that OpenFedLLM loads, the sources of FinGPT's sentiment, and FedLLM-Bench.
pub static DATASETS: &[Dataset] = &[
    Dataset {
        about: "52,002 instructions with text-davinci-003's answers",
        licence: "CC BY-NC 4.0",
        splits: &[train(FirstOf(&[
            &["**/train-*.parquet"],
            &["**/alpaca_data.json"],
        ]))],
        ..examples("alpaca", &["tatsu-lab/alpaca"], rows::alpaca)
    },
    Dataset {
        about: "the instructions of Alpaca with GPT-4's answers",
        licence: "CC BY-NC 4.0",
        splits: &[train(FirstOf(&[
            &["**/train-*.parquet"],
            &["**/alpaca_gpt4_data.json"],
        ]))],
        ..examples("alpaca-gpt4", &["vicgalle/alpaca-gpt4"], rows::alpaca)
    },
    Dataset {
        about: "Alpaca with its mistakes mended",
        licence: "CC BY-NC 4.0",
        splits: &[train(FirstOf(&[
            &["**/alpaca_data_cleaned.json"],
            &["**/train-*.parquet"],
        ]))],
        ..examples("alpaca-cleaned", &["yahma/alpaca-cleaned"], rows::alpaca)
    },
    Dataset {
        about: "76,772 financial texts and their sentiment, as FinGPT asks for it",
        licence: "none is stated; the sources are non-commercial",
        splits: &[train(FirstOf(&[&["**/train-*.parquet"]]))],
        ..examples(
            "fingpt-sentiment",
            &["FinGPT/fingpt-sentiment-train"],
            rows::classified,
        )
    },
    Dataset {
        about: "33,955 medical flashcards as questions and answers",
        licence: "CC, of no stated version",
        splits: &[train(FirstOf(&[
            &["**/medical_meadow_wikidoc_medical_flashcards.json"],
            &["**/train-*.parquet"],
        ]))],
        ..examples(
            "medical-flashcards",
            &["medalpaca/medical_meadow_medical_flashcards"],
            rows::flashcards,
        )
    },
    Dataset {
        about: "20,022 programming tasks and their solutions",
        licence: "CC BY-NC 4.0",
        splits: &[train(FirstOf(&[
            &["**/train-*.parquet"],
            &["**/code_alpaca_20k.json"],
        ]))],
        ..examples(
            "code-alpaca",
            &["lucasmccabe-lmi/CodeAlpaca-20k", "sahil2801/CodeAlpaca-20k"],
            rows::alpaca,
        )
    },
    Dataset {
        about: "262,039 mathematical problems, worked out in words or as programs",
        licence: "MIT; parts under licences of their own",
        splits: &[train(FirstOf(&[&["**/MathInstruct.json"]]))],
        unique: Some("instruction"),
        ..examples("math-instruct", &["TIGER-Lab/MathInstruct"], rows::alpaca)
    },
    Dataset {
        about: "70,000 instructions evolved from Alpaca's, as WizardLM learned them",
        licence: "MIT",
        splits: &[train(FirstOf(&[
            &["**/alpaca_evol_instruct_70k.json"],
            &["**/train-*.parquet"],
        ]))],
        ..examples(
            "evol-instruct",
            &[
                "WizardLM/WizardLM_evol_instruct_70k",
                "WizardLMTeam/WizardLM_evol_instruct_70k",
            ],
            rows::alpaca,
        )
    },
    Dataset {
        about: "68,912 financial instructions, Alpaca's among them",
        licence: "MIT; Alpaca's part is CC BY-NC 4.0",
        splits: &[train(FirstOf(&[
            &["**/Cleaned_date.json"],
            &["**/train-*.parquet"],
        ]))],
        ..examples("finance-alpaca", &["gbharti/finance-alpaca"], rows::alpaca)
    },
    Dataset {
        about: "12,500 problems of mathematics competitions, with solutions",
        licence: "MIT; the problems belong to their publisher",
        splits: &[
            train(FirstOf(&[
                &["data/train-*.parquet"],
                &["**/train-*.parquet"],
                &["**/train/*/*.json"],
                &["**/train.jsonl"],
            ])),
            test(FirstOf(&[
                &["data/test-*.parquet"],
                &["**/test-*.parquet"],
                &["**/test/*/*.json"],
                &["**/test.jsonl"],
            ])),
        ],
        read_as: ReadAs {
            object: JsonObject::LongRow,
            ..ReadAs::ITSELF
        },
        ..examples(
            "math",
            &["lighteval/MATH", "DigitalLearningGmbH/MATH-lighteval"],
            rows::math,
        )
    },
    Dataset {
        about: "8,792 word problems of school mathematics, worked out in words",
        licence: "MIT",
        splits: &[
            train(FirstOf(&[
                &["main/train-*.parquet"],
                &["**/train-*.parquet"],
                &["**/train.jsonl"],
            ])),
            test(FirstOf(&[
                &["main/test-*.parquet"],
                &["**/test-*.parquet"],
                &["**/test.jsonl"],
            ])),
        ],
        ..examples("gsm8k", &["openai/gsm8k", "gsm8k"], rows::qa)
    },
    Dataset {
        about: "preferences of GPT-4 among answers to 64,000 prompts",
        licence: "MIT",
        kind: Preferences,
        splits: &[
            // OpenFedLLM trains on train_sft, which has the same rows.
            split("train_prefs", FirstOf(&[&["**/train_prefs-*.parquet"]])),
            split("test_prefs", FirstOf(&[&["**/test_prefs-*.parquet"]])),
            split("train_sft", FirstOf(&[&["**/train_sft-*.parquet"]])),
            split("test_sft", FirstOf(&[&["**/test_sft-*.parquet"]])),
        ],
        ..examples(
            "ultrafeedback-binarized",
            &["HuggingFaceH4/ultrafeedback_binarized"],
            rows::preference,
        )
    },
    Dataset {
        about: "preferences of people among answers in dialogues (harmful ones, too)",
        licence: "MIT",
        kind: Preferences,
        splits: &[
            train(FirstOf(&[&[
                "**/harmless-base/train.jsonl.gz",
                "**/helpful-base/train.jsonl.gz",
                "**/helpful-online/train.jsonl.gz",
                "**/helpful-rejection-sampled/train.jsonl.gz",
            ]])),
            test(FirstOf(&[&[
                "**/harmless-base/test.jsonl.gz",
                "**/helpful-base/test.jsonl.gz",
                "**/helpful-online/test.jsonl.gz",
                "**/helpful-rejection-sampled/test.jsonl.gz",
            ]])),
            split(
                "harmless-base",
                FirstOf(&[&["**/harmless-base/train.jsonl.gz"]]),
            ),
            split(
                "helpful-base",
                FirstOf(&[&["**/helpful-base/train.jsonl.gz"]]),
            ),
            split(
                "helpful-online",
                FirstOf(&[&["**/helpful-online/train.jsonl.gz"]]),
            ),
            split(
                "helpful-rejection-sampled",
                FirstOf(&[&["**/helpful-rejection-sampled/train.jsonl.gz"]]),
            ),
        ],
        ..examples("hh-rlhf", &["Anthropic/hh-rlhf"], rows::hh)
    },
    Dataset {
        about: "PhraseBank, FiQA, financial tweets and news as FinGPT asks for them",
        licence: "CC BY-NC-SA 3.0 (PhraseBank), MIT (tweets); none is stated for FiQA",
        splits: &[
            train(AnyOf(&[
                "**/all-data.csv",
                "**/Sentences_50Agree.txt",
                "**/*headline_ABSA_train.json",
                "**/*post_ABSA_train.json",
                "**/sent_train.csv",
                "**/train-*.parquet",
                "**/*nwgi*train*.json*",
                "**/*news_with_gpt_instructions*train*.json*",
            ])),
            test(AnyOf(&[
                "**/all-data.csv",
                "**/Sentences_50Agree.txt",
                "**/*headline_ABSA_test.json",
                "**/*post_ABSA_test.json",
                "**/sent_valid.csv",
                "**/validation-*.parquet",
                "**/test-*.parquet",
                "**/*nwgi*test*.json*",
                "**/*news_with_gpt_instructions*test*.json*",
            ])),
        ],
        read_as: ReadAs {
            object: JsonObject::OfRows,
            header: Header::UnlessFirstIs(&Sentiment::NAMES),
            row_per_line: true,
            latin1: true,
        },
        ..examples(
            "finance-sentiment",
            &[
                "takala/financial_phrasebank",
                "pauri32/fiqa-2018",
                "zeroshot/twitter-financial-news-sentiment",
                "oliverwang15/news_with_gpt_instructions",
            ],
            finance::sentiment,
        )
    },
    Dataset {
        about: "files of FedLLM-Bench: an object with the rows of each owner",
        licence: "CC BY-NC 4.0; Fed-Aya Apache-2.0, Fed-WildChat ODC-By",
        splits: &[train(AnyOf(&["**/*.json"]))],
        read_as: ReadAs {
            object: JsonObject::OfRows,
            ..ReadAs::ITSELF
        },
        ..examples("fedllm-bench", &[], rows::owned)
    },
];

const fn examples(
    name: &'static str,
    hub: &'static [&'static str],
    rows: fn(&Fields<'_>) -> Result<Vec<Entry>, RowProblem>,
) -> Dataset {
    Dataset {
        name,
        hub,
        kind: Examples,
        about: "",
        licence: "",
        splits: &[],
        read_as: ReadAs::ITSELF,
        rows,
        unique: None,
    }
}

const fn split(name: &'static str, files: Files) -> Split {
    Split { name, files }
}

const fn train(files: Files) -> Split {
    split("train", files)
}

const fn test(files: Files) -> Split {
    split("test", files)
}
