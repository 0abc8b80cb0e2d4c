//! The report of a run folder, as a browser gets it.
#![allow(clippy::unwrap_used)]

mod sample;

use std::fs;
use std::path::{Path, PathBuf};

use tessera_track::{EventLog, EventType, TrackError, write_report};

/// The sample run with its report, left in the target folder so that one can look at it in a browser.
fn sample_report() -> (PathBuf, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("arithmetic-135m");
    sample::write_sample_run(&folder);
    let path = write_report(&folder).unwrap();
    let html = fs::read_to_string(&path).unwrap();
    (path, html)
}

#[test]
fn the_sample_report_shows_the_run_and_escapes_what_users_wrote() {
    let (path, html) = sample_report();
    assert!(path.ends_with("arithmetic-135m/report.html"));
    for shown in [
        "<title>arithmetic-135m · Tessera</title>",
        "HuggingFaceTB&#x2f;SmolLM2-135M-Instruct",
        "<span class=\"status COMPLETED\">COMPLETED</span>",
        "3 min 39 s",
        "2\u{202f}592\u{202f}000",
        "after 320 batches",
        "&lt;script&gt;alert(&#x27;before&#x27;)&lt;&#x2f;script&gt;",
        "# &lt;not a tag&gt;",
        "checkpoints&#x2f;ep2-ba320",
        "3 more in between",
    ] {
        assert!(html.contains(shown), "{shown} is missing; see {}", path.display());
    }
    for hostile in ["<script", "<img", "<not a tag", "http://", "https://", "NaN", "TRAIN_UPDATED"] {
        assert!(!html.contains(hostile), "{hostile} is there; see {}", path.display());
    }
}

/// What follows the style sheet of a small run's report. To accept a change, delete the golden file and run the
/// test twice.
#[test]
fn a_small_report_is_as_it_was() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("small");
    fs::create_dir(&run).unwrap();
    for name in ["run.yaml", "events.jsonl", "metrics.jsonl", "generations.jsonl"] {
        fs::copy(fixtures.join("small").join(name), run.join(name)).unwrap();
    }
    let html = fs::read_to_string(write_report(&run).unwrap()).unwrap();
    let (_, main) = html.split_once("<main>").unwrap();
    let golden = fixtures.join("small-report-main.html");
    if !golden.exists() {
        fs::write(&golden, main).unwrap();
        panic!("{} was missing and has been written", golden.display());
    }
    let expected = fs::read_to_string(&golden).unwrap();
    for (line, (found, expected)) in main.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {}", line + 1, golden.display());
    }
    assert_eq!(main.len(), expected.len());
}

#[test]
fn a_run_that_failed_before_its_first_batch_has_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventLog::open(folder.path()).unwrap();
    events.record(EventType::Created, "", &[]).unwrap();
    events.record(EventType::CheckFailed, "train.jsonl, line 3: no \"messages\"", &[]).unwrap();
    let html = fs::read_to_string(write_report(folder.path()).unwrap()).unwrap();
    assert!(html.contains(">FAILED</span>") && html.contains("line 3: no &quot;messages&quot;"));
    assert!(!html.contains("<h2>Curves") && !html.contains("<h2>Prompts"));
}

#[test]
fn a_folder_without_events_is_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let error = write_report(folder.path()).unwrap_err();
    assert!(matches!(error, TrackError::NotARun { .. }), "{error}");
    assert!(!folder.path().join("report.html").exists());
}
