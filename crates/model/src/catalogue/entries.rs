//! The rows of the catalogue.

use super::{EmbeddedConfig, Entry, Series, ServiceStatus};

/// Every model of the catalogue, the newest first.
pub fn all() -> &'static [Entry] {
    ENTRIES
}

const LLAMA_3_TOKENIZER: &str = "byte-level BPE: 128,000 tokens and 256 special ones";
const LLAMA_3_TEMPLATE: &str = "each message behind a header of its role, ended by <|eot_id|>";
const SENTENCEPIECE: &str = "SentencePiece BPE of 32,000 tokens";
const MISTRAL_TEMPLATE: &str =
    "[INST] … [/INST]; older templates refuse a system message, newer ones put it before the first question";
const LLAMA_2_TEMPLATE: &str = "[INST] … [/INST], a system message between <<SYS>> and <</SYS>>";

static LLAMA_3_2: Series = Series {
    name: "Llama 3.2",
    licence: "Llama 3.2 Community License; gated on the hub",
    tokenizer: LLAMA_3_TOKENIZER,
    template: LLAMA_3_TEMPLATE,
};
static LLAMA_3_1: Series = Series {
    name: "Llama 3.1",
    licence: "Llama 3.1 Community License; gated on the hub",
    tokenizer: LLAMA_3_TOKENIZER,
    template: LLAMA_3_TEMPLATE,
};
static LLAMA_3: Series = Series {
    name: "Llama 3",
    licence: "Meta Llama 3 Community License; gated on the hub",
    tokenizer: LLAMA_3_TOKENIZER,
    template: LLAMA_3_TEMPLATE,
};
static LLAMA_2: Series = Series {
    name: "Llama 2",
    licence: "Llama 2 Community License; gated on the hub",
    tokenizer: SENTENCEPIECE,
    template: LLAMA_2_TEMPLATE,
};
static CODE_LLAMA: Series = Series {
    name: "Code Llama",
    licence: "Llama 2 Community License",
    tokenizer: "SentencePiece BPE of 32,000 tokens, and 16 more for infilling where the vocabulary has 32,016",
    template: LLAMA_2_TEMPLATE,
};
static MISTRAL: Series = Series {
    name: "Mistral 7B",
    licence: "Apache License 2.0",
    tokenizer: SENTENCEPIECE,
    template: MISTRAL_TEMPLATE,
};
static MIXTRAL: Series = Series {
    name: "Mixtral 8x7B",
    licence: "Apache License 2.0",
    tokenizer: SENTENCEPIECE,
    template: MISTRAL_TEMPLATE,
};
static DBRX: Series = Series {
    name: "DBRX",
    licence: "Databricks Open Model License; gated on the hub",
    tokenizer: "byte-level BPE, cl100k_base of tiktoken; the embedding has spare rows, 100,352 in all",
    template: "each message between <|im_start|> and <|im_end|>, behind a system message of its own where there is none",
};

/// A model that continues text.
const fn base(name: &'static str, series: &'static Series, config: EmbeddedConfig) -> Entry {
    Entry { name, chat: false, series, service: ServiceStatus::Withdrawn, config }
}

/// A model that answers.
const fn chat(name: &'static str, series: &'static Series, config: EmbeddedConfig) -> Entry {
    Entry { name, chat: true, series, service: ServiceStatus::Withdrawn, config }
}

macro_rules! config {
    ($name:literal) => {
        EmbeddedConfig { name: $name, text: include_str!(concat!("configs/", $name, ".json")) }
    };
}

static ENTRIES: &[Entry] = &[
    base("meta-llama/Llama-3.2-1B", &LLAMA_3_2, config!("llama-3.2-1b")),
    chat("meta-llama/Llama-3.2-1B-Instruct", &LLAMA_3_2, config!("llama-3.2-1b")),
    base("meta-llama/Llama-3.2-3B", &LLAMA_3_2, config!("llama-3.2-3b")),
    chat("meta-llama/Llama-3.2-3B-Instruct", &LLAMA_3_2, config!("llama-3.2-3b")),
    base("meta-llama/Meta-Llama-3.1-8B", &LLAMA_3_1, config!("llama-3.1-8b")),
    chat("meta-llama/Meta-Llama-3.1-8B-Instruct", &LLAMA_3_1, config!("llama-3.1-8b")),
    base("meta-llama/Meta-Llama-3.1-70B", &LLAMA_3_1, config!("llama-3.1-70b")),
    chat("meta-llama/Meta-Llama-3.1-70B-Instruct", &LLAMA_3_1, config!("llama-3.1-70b")),
    base("meta-llama/Meta-Llama-3.1-405B", &LLAMA_3_1, config!("llama-3.1-405b")),
    chat("meta-llama/Meta-Llama-3.1-405B-Instruct", &LLAMA_3_1, config!("llama-3.1-405b")),
    base("meta-llama/Meta-Llama-3-8B", &LLAMA_3, config!("llama-3-8b")),
    chat("meta-llama/Meta-Llama-3-8B-Instruct", &LLAMA_3, config!("llama-3-8b")),
    base("meta-llama/Meta-Llama-3-70B", &LLAMA_3, config!("llama-3-70b")),
    chat("meta-llama/Meta-Llama-3-70B-Instruct", &LLAMA_3, config!("llama-3-70b")),
    base("meta-llama/Llama-2-7b-hf", &LLAMA_2, config!("llama-2-7b")),
    chat("meta-llama/Llama-2-7b-chat-hf", &LLAMA_2, config!("llama-2-7b")),
    base("meta-llama/Llama-2-13b-hf", &LLAMA_2, config!("llama-2-13b")),
    chat("meta-llama/Llama-2-13b-chat-hf", &LLAMA_2, config!("llama-2-13b")),
    base("meta-llama/Llama-2-70b-hf", &LLAMA_2, config!("llama-2-70b")),
    chat("meta-llama/Llama-2-70b-chat-hf", &LLAMA_2, config!("llama-2-70b")),
    base("codellama/CodeLlama-7b-hf", &CODE_LLAMA, config!("codellama-7b")),
    chat("codellama/CodeLlama-7b-Instruct-hf", &CODE_LLAMA, config!("codellama-7b")),
    base("codellama/CodeLlama-7b-Python-hf", &CODE_LLAMA, config!("codellama-7b-python")),
    base("codellama/CodeLlama-13b-hf", &CODE_LLAMA, config!("codellama-13b")),
    chat("codellama/CodeLlama-13b-Instruct-hf", &CODE_LLAMA, config!("codellama-13b")),
    base("codellama/CodeLlama-13b-Python-hf", &CODE_LLAMA, config!("codellama-13b-python")),
    base("codellama/CodeLlama-34b-hf", &CODE_LLAMA, config!("codellama-34b")),
    chat("codellama/CodeLlama-34b-Instruct-hf", &CODE_LLAMA, config!("codellama-34b")),
    base("codellama/CodeLlama-34b-Python-hf", &CODE_LLAMA, config!("codellama-34b")),
    base("mistralai/Mistral-7B-v0.1", &MISTRAL, config!("mistral-7b-v0.1")),
    Entry {
        service: ServiceStatus::NotListed,
        ..chat("mistralai/Mistral-7B-Instruct-v0.1", &MISTRAL, config!("mistral-7b-v0.1"))
    },
    chat("mistralai/Mistral-7B-Instruct-v0.2", &MISTRAL, config!("mistral-7b-v0.2")),
    base("mistralai/Mixtral-8x7B-v0.1", &MIXTRAL, config!("mixtral-8x7b")),
    Entry {
        service: ServiceStatus::NotListed,
        ..chat("mistralai/Mixtral-8x7B-Instruct-v0.1", &MIXTRAL, config!("mixtral-8x7b"))
    },
    base("databricks/dbrx-base", &DBRX, config!("dbrx")),
    chat("databricks/dbrx-instruct", &DBRX, config!("dbrx")),
];
