//! A disk that fills up while checkpoints are saved. It is a small file system in memory, mounted in a namespace of its own;
//! where the system allows no such namespaces the test says so and passes, unless `TESSERA_REQUIRE_NAMESPACES` is set.

use std::process::{Command, Stdio};

use crate::support::{Bench, ended};

/// Room for two checkpoints of the tiny model (about 400 kB each) and the rest of a run, but not for three.
const SIZE: &str = "1300k";

fn namespaces_are_allowed() -> bool {
    let tried = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn training_goes_on_and_older_checkpoints_stay_whole() {
    if !namespaces_are_allowed() {
        assert!(std::env::var_os("TESSERA_REQUIRE_NAMESPACES").is_none(), "unshare -rm is not allowed here");
        eprintln!("not run: this system allows no namespaces");
        return;
    }
    let bench = Bench::new();
    bench.write("runs/.mounted-over", "");
    let binary = env!("CARGO_BIN_EXE_tessera");
    let script = format!(
        "mount -t tmpfs -o size={SIZE} none runs || exit 99
        {binary} train run.yaml save_interval=2ba
        echo \"first: $?\"
        {binary} checkpoint verify runs/tiny/checkpoints/ep0-ba2
        echo \"verify: $?\"
        rm -r runs/tiny/checkpoints/ep0-ba2
        {binary} train run.yaml save_interval=2ba save_num_checkpoints_to_keep=1
        echo \"second: $?\""
    );
    let mut command = Command::new("unshare");
    command
        .args(["-rm", "sh", "-c", &script])
        .current_dir(bench.path("."))
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let told = ended(command);
    let (said, warned) = (&told.stdout, &told.stderr);
    assert!(warned.contains("a checkpoint could not be saved: "), "{told:#?}");
    assert!(said.contains("first: 3"), "{told:#?}");
    assert!(warned.contains("Make room and run the same command again"), "{told:#?}");
    assert!(said.contains("verify: 0"), "{told:#?}");
    assert!(said.contains("second: 0"), "{told:#?}");
}
