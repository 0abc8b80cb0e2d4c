//! A model in Hugging Face layout as MLflow's `transformers` flavour keeps one.
//!
//! That flavour reads a file `MLmodel`, the model in the folder that it names, and the tokenizer in `components/tokenizer`. The
//! folder that it names here is its own, so what is downloaded also is a folder that `from_pretrained` reads. The tokenizer is
//! there twice; it is small.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tessera_files::{FileError, IoContext};

use super::MlflowError;
use super::client::Content;

/// What a model is registered as.
#[derive(Debug, Clone)]
pub struct Model {
    /// The registered model's name.
    pub name: String,
    /// The model's folder, in Hugging Face layout.
    pub folder: PathBuf,
    /// The model that it was trained from.
    pub base: String,
    /// What it answers, in the words of MLflow's inference tasks: `llm/v1/chat` or `llm/v1/completions`.
    pub task: &'static str,
}

impl Model {
    /// Every artifact by its name below the model's own place, `MLmodel` last.
    pub(super) fn artifacts(&self, run_id: &str) -> Result<Vec<(String, Content)>, MlflowError> {
        let mut artifacts = Vec::new();
        for name in files(&self.folder)? {
            let file = self.folder.join(&name);
            if is_of_the_tokenizer(&name) {
                artifacts.push((format!("components/tokenizer/{name}"), Content::File(file.clone())));
            }
            artifacts.push((name, Content::File(file)));
        }
        artifacts.push(("requirements.txt".to_owned(), Content::Text(REQUIREMENTS.to_owned())));
        artifacts.push(("MLmodel".to_owned(), Content::Text(self.description(run_id)?)));
        Ok(artifacts)
    }

    /// The file `MLmodel`. It is YAML, of which JSON is a part.
    fn description(&self, run_id: &str) -> Result<String, MlflowError> {
        let path = self.folder.join("config.json");
        let damaged = |reason: String| MlflowError::Damaged { path: path.clone(), reason };
        let config: Value = serde_json::from_slice(&fs::read(&path).context("read", &path)?)
            .map_err(|error| damaged(error.to_string()))?;
        let class = config["architectures"][0].as_str().ok_or_else(|| damaged("it names no class".into()))?;
        let dtype = config.get("torch_dtype").or_else(|| config.get("dtype")).and_then(Value::as_str);
        // Texts, as one value or a column of any name.
        let texts = json!([{"type": "string", "required": true}]).to_string();
        let description = json!({
            "run_id": run_id,
            "flavors": {
                "transformers": {
                    "task": "text-generation",
                    "instance_type": "TextGenerationPipeline",
                    "framework": "pt",
                    "torch_dtype": dtype.map(|dtype| format!("torch.{dtype}")),
                    "pipeline_model_type": class,
                    "source_model_name": self.base,
                    "model_binary": ".",
                    "components": ["tokenizer"],
                    // The class that reads `tokenizer.json` as it is.
                    "tokenizer_type": "PreTrainedTokenizerFast",
                    "code": null,
                },
                "python_function": {"loader_module": "mlflow.transformers"},
            },
            "metadata": {"task": self.task},
            "signature": {"inputs": texts, "outputs": texts, "params": null},
        });
        serde_json::to_string_pretty(&description).map_err(|error| damaged(error.to_string()))
    }
}

/// What a serving environment needs.
const REQUIREMENTS: &str = "mlflow\ntransformers\ntorch\n";

/// The names of a folder's files.
fn files(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        let entry = entry.context("list", folder)?;
        if entry.file_type().context("list", folder)?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether an export's file is part of its tokenizer: neither weights nor a config of the model.
fn is_of_the_tokenizer(name: &str) -> bool {
    !name.ends_with(".safetensors")
        && !name.ends_with(".index.json")
        && !["config.json", "generation_config.json"].contains(&name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn model(config: &str) -> (tempfile::TempDir, Model) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("config.json", config),
            ("model.safetensors", "w"),
            ("tokenizer.json", "t"),
            ("chat_template.jinja", "c"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::create_dir(folder.path().join("other")).unwrap();
        let path = folder.path().to_owned();
        let task = "llm/v1/chat";
        (folder, Model { name: "a.b.c".to_owned(), folder: path, base: "org/base".to_owned(), task })
    }

    #[test]
    fn a_model_has_its_files_its_tokenizer_again_and_a_description() {
        let (_folder, model) = model(r#"{"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}"#);
        let artifacts = model.artifacts("r").unwrap();
        let names: Vec<_> = artifacts.iter().map(|(name, _)| name.as_str()).collect();
        let wanted = [
            "components/tokenizer/chat_template.jinja",
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "components/tokenizer/tokenizer.json",
            "tokenizer.json",
            "requirements.txt",
            "MLmodel",
        ];
        assert_eq!(names, wanted);
        let Some((_, Content::Text(text))) = artifacts.last() else { panic!("{artifacts:?}") };
        let description: Value = serde_json::from_str(text).unwrap();
        let flavour = &description["flavors"]["transformers"];
        assert_eq!(flavour["pipeline_model_type"], "LlamaForCausalLM");
        assert_eq!(
            (&flavour["torch_dtype"], &flavour["model_binary"]),
            (&json!("torch.bfloat16"), &json!("."))
        );
        assert_eq!(description["run_id"], "r");
    }

    #[test]
    fn a_config_that_names_no_class_is_told_with_its_file() {
        for config in ["{}", "[", r#"{"architectures": []}"#] {
            let (_folder, model) = model(config);
            let error = model.artifacts("r").unwrap_err().to_string();
            assert!(error.contains("config.json: "), "{error}");
        }
    }
}
