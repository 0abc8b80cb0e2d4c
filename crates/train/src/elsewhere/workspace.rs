//! Models and weights that a Databricks workspace keeps: read where its volumes are mounted, else refused with the command that
//! brings them here.

use std::path::{Path, PathBuf};

use tessera_workspace::VolumePath;

use crate::error::TrainError;

/// What stands before a path on a workspace.
const SCHEME: &str = "dbfs:";
/// Where the workspace's MLflow keeps artifacts: below it come experiment, run, `artifacts`, and their paths.
const ARTIFACTS: &str = "/databricks/mlflow-tracking/";
/// The ending of a text that names a checkpoint beside it.
const LINK: &str = ".symlink";

/// The path below `root` of what `given` names on a workspace; `None`: it names something of this machine.
///
/// # Errors
/// When it is not mounted there.
pub(super) fn mounted(key: &'static str, given: &str, root: &Path) -> Result<Option<PathBuf>, TrainError> {
    if Path::new(given).exists() || !(given.starts_with(SCHEME) || given.starts_with("/Volumes/")) {
        return Ok(None);
    }
    let volume = VolumePath::parse(given).ok().flatten();
    if let Some(path) = volume.as_ref().and_then(|volume| volume.mounted(root)) {
        return Ok(Some(path));
    }
    let path = given.strip_prefix(SCHEME).unwrap_or(given);
    let (place, command) = match path.strip_prefix(ARTIFACTS).and_then(download) {
        Some(command) => {
            ("is an artifact of a run in a workspace's MLflow, which cannot be read from here", command)
        }
        None => {
            let place = match volume {
                Some(_) => "is in a volume of a workspace, and /Volumes is not mounted here",
                None => "is a file of a workspace, in no volume of Unity Catalog",
            };
            (place, format!("databricks fs cp --recursive '{SCHEME}{}' DIR", folder_of(path)))
        }
    };
    Err(TrainError::OnWorkspace { key, path: given.to_owned(), place, command })
}

/// The command that downloads an artifact, `<experiment>/<run>/artifacts/<path>`.
fn download(artifact: &str) -> Option<String> {
    let mut parts = artifact.splitn(4, '/');
    let (_, run, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let path = parts.next().map(folder_of).filter(|path| !path.is_empty());
    let which = path.map(|path| format!(" --artifact-path '{path}'")).unwrap_or_default();
    (kind == "artifacts").then(|| {
        format!(
            "MLFLOW_TRACKING_URI=databricks mlflow artifacts download --run-id {run}{which} --dst-path DIR"
        )
    })
}

/// The folder that is to be brought: for a text that names a checkpoint the one that both are in.
fn folder_of(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((folder, name)) if name.ends_with(LINK) => folder,
        _ if path.ends_with(LINK) => "",
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refused(given: &str) -> String {
        mounted("custom_weights_path", given, Path::new("/no-such-root")).unwrap_err().to_string()
    }

    #[test]
    fn artifacts_of_a_workspace_are_named_with_the_command_that_downloads_them() {
        let artifacts = "dbfs:/databricks/mlflow-tracking/12/ab34/artifacts";
        for (path, option) in [
            ("", " --dst-path"),
            ("/run-a/checkpoints/ep1-ba5", " --artifact-path 'run-a/checkpoints/ep1-ba5' --dst-path"),
            (
                "/run-a/checkpoints/latest-sharded-rank0.symlink",
                " --artifact-path 'run-a/checkpoints' --dst-path",
            ),
        ] {
            let given = format!("{artifacts}{path}");
            let said = refused(&given);
            assert!(said.starts_with(&format!("custom_weights_path: {given} is an artifact of")), "{said}");
            let command = format!("mlflow artifacts download --run-id ab34{option} DIR");
            assert!(said.contains(&command) && said.contains("name what lies there"), "{said}");
        }
    }

    #[test]
    fn other_files_of_a_workspace_are_named_with_the_command_that_copies_them() {
        for (given, place, copied) in [
            ("dbfs:/FileStore/a.pt", "in no volume", "'dbfs:/FileStore/a.pt' DIR"),
            (
                "dbfs:/databricks/mlflow-tracking/1",
                "in no volume",
                "'dbfs:/databricks/mlflow-tracking/1' DIR",
            ),
            ("dbfs:/Volumes/c/s/v/ep1-ba5/", "/Volumes is not mounted", "'dbfs:/Volumes/c/s/v/ep1-ba5' DIR"),
            ("/Volumes/c/s/v/ep1-ba5", "/Volumes is not mounted", "'dbfs:/Volumes/c/s/v/ep1-ba5' DIR"),
            ("dbfs:/Volumes/c/s/v/c/x.symlink", "/Volumes is not mounted", "'dbfs:/Volumes/c/s/v/c' DIR"),
        ] {
            let said = refused(given);
            assert!(
                said.contains(place) && said.contains(&format!("databricks fs cp --recursive {copied}")),
                "{said}"
            );
        }
    }

    #[test]
    fn a_mounted_volume_is_read_there_and_paths_of_this_machine_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("Volumes/c/s/v/ep1-ba5");
        std::fs::create_dir_all(&folder).unwrap();
        for given in ["dbfs:/Volumes/c/s/v/ep1-ba5", "/Volumes/c/s/v/ep1-ba5"] {
            assert_eq!(mounted("model", given, root.path()).unwrap(), Some(folder.clone()));
        }
        for given in ["runs/a/checkpoints/ep1-ba5", "/tmp", "org/name", "dbfsx:/a"] {
            assert_eq!(mounted("model", given, root.path()).unwrap(), None, "{given}");
        }
    }
}
