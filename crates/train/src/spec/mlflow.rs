//! How a run is told to an MLflow tracking server; which experiment it belongs to is `experiment_path`.

use serde::Serialize;

use super::keyword::keyword;
use super::reader::{self, MapReader};

/// The map `mlflow`; complete once it is written at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MlflowSpec {
    /// The server's address; `MLFLOW_TRACKING_URI` where it is left out.
    pub tracking_uri: Option<String>,
    /// The address of the registry of models; `MLFLOW_REGISTRY_URI` where it is left out, else that server too.
    pub registry_uri: Option<String>,
    /// What becomes of a run whose server does not answer at its start.
    pub unreachable: Unreachable,
    /// What the server gets of checkpoints and models.
    pub artifacts: Artifacts,
    /// Whether it gets the load of the machine.
    pub system_metrics: bool,
}

keyword! {
    /// What becomes of a run whose tracking server does not answer at its start.
    Unreachable {
        /// It does not start.
        Fail = "fail",
        /// It starts; what there is to tell is told when the server is there.
        Buffer = "buffer",
    }
}

keyword! {
    /// What a tracking server gets of checkpoints and models.
    Artifacts {
        /// Where they lie.
        Links = "links",
        /// Copies.
        Upload = "upload",
    }
}

impl Default for MlflowSpec {
    fn default() -> Self {
        Self {
            tracking_uri: None,
            registry_uri: None,
            unreachable: Unreachable::Fail,
            artifacts: Artifacts::Links,
            system_metrics: true,
        }
    }
}

impl MlflowSpec {
    /// Reads the map `mlflow`.
    pub(super) fn read(map: &mut MapReader<'_>) -> Self {
        let default = Self::default();
        Self {
            tracking_uri: map.optional("tracking_uri", reader::text),
            registry_uri: map.optional("registry_uri", reader::text),
            unreachable: map.optional("unreachable", reader::keyword).unwrap_or(default.unreachable),
            artifacts: map.optional("artifacts", reader::keyword).unwrap_or(default.artifacts),
            system_metrics: map.optional("system_metrics", reader::boolean).unwrap_or(default.system_metrics),
        }
    }
}
