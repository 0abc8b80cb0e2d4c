//! The files that start runs over several nodes: what they give to the binary, it takes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::Bench;

fn config(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name)).unwrap()
}

/// The words after the binary's name in the shell script that starts it.
fn arguments<'a>(script: &'a str, binary: &str) -> Vec<&'a str> {
    let line = script.lines().find_map(|line| line.split_once(binary).map(|(_, words)| words));
    line.unwrap().split_whitespace().collect()
}

#[test]
fn the_kubernetes_manifest_starts_a_run() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&config("kubernetes.yaml")).unwrap();
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
    let (service, settings, job) = (of_kind("Service"), &of_kind("ConfigMap")["data"], of_kind("Job"));

    // The names under which the pods find one another.
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["metadata"]["name"], pod["subdomain"]);
    assert_eq!(service["spec"]["selector"]["batch.kubernetes.io/job-name"], job["metadata"]["name"]);
    assert_eq!(job["spec"]["completionMode"], "Indexed");
    let container = &pod["containers"][0];
    assert_eq!(container["env"][0]["name"], "NODES");
    assert_eq!(container["env"][0]["value"], job["spec"]["completions"].to_string());
    assert_eq!(job["spec"]["completions"], job["spec"]["parallelism"]);

    // The run file and the command line, with what lies on the cluster's volume replaced.
    let bench = Bench::new();
    bench.write("run.yaml", settings["run.yaml"].as_str().unwrap());
    let arguments = arguments(settings["launch.sh"].as_str().unwrap(), " tessera ");
    let ["train", "/etc/tessera/run.yaml", overrides @ ..] = arguments.as_slice() else {
        panic!("{arguments:?}")
    };
    let here = ["model=model", "train_data_path=train.jsonl", "save_folder=runs", "context_length=64"];
    let short = ["training_duration=1ba", "learning_rate=1.0e-3"];
    bench.tessera(&[&["train", "run.yaml"], overrides, &here, &short].concat()).printed();
}

#[test]
fn the_job_file_for_slurm_hands_its_arguments_on() {
    let script = config("slurm.sbatch");
    let arguments = arguments(&script, "\"${TESSERA:-tessera}\"");
    assert!(arguments.starts_with(&["train", "\"$@\"", "2>"]), "{arguments:?}");
}
