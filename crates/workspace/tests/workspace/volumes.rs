//! Volumes fetched from a stand-in for a workspace, which listens on this machine and answers as the Files API does. Methods,
//! paths, escapes and the query for a page are those that PyPI's `databricks-sdk` 0.162.0 was seen to send.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::server::{Fault, Server};
use tessera_workspace::{FetchedVolume, Request, VolumePath, Workspace, WorkspaceError, cached};

const TOKEN: &str = "dapi-s3cret";

struct Bench {
    server: Server,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let server = Server::start(TOKEN);
        for (path, bytes) in files {
            server.write(path, bytes);
        }
        Self { server, cache: tempfile::tempdir().unwrap() }
    }

    fn workspace(&self, path: &VolumePath, token: &str) -> Workspace {
        let host = self.server.address();
        let variable =
            |name: &str| Some(if name == "DATABRICKS_HOST" { host.clone() } else { token.to_owned() });
        let mut workspace = Workspace::find(&format!("{path} is wanted"), variable).unwrap();
        workspace.pause = Duration::from_millis(1);
        workspace
    }

    fn fetch_as(
        &self,
        path: &str,
        token: &str,
        version: Option<&str>,
    ) -> Result<FetchedVolume, WorkspaceError> {
        let path = VolumePath::parse(path).unwrap().unwrap();
        let choose = |names: Vec<String>| names.into_iter().filter(|name| name.ends_with(".jsonl")).collect();
        let progress = |_: &str, done, total| assert!(done <= total);
        let request =
            Request { path: &path, cache: self.cache.path(), choose: &choose, version, progress: &progress };
        self.workspace(&path, token).fetch(&request)
    }

    fn fetch(&self, path: &str) -> Result<FetchedVolume, WorkspaceError> {
        self.fetch_as(path, TOKEN, None)
    }
}

fn rows(seed: u8) -> Vec<u8> {
    (0..200_000_u32).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn folders_come_with_what_is_wanted_of_them() {
    let bench = Bench::new(&[
        ("/Volumes/c/s/v/d/a b%ä.jsonl", b"one"),
        ("/Volumes/c/s/v/d/e/f.jsonl", &rows(1)),
        ("/Volumes/c/s/v/d/README.md", b"about"),
        ("/Volumes/c/s/v/d/empty.jsonl", b""),
        ("/Volumes/c/s/v/other.jsonl", b"other"),
    ]);
    let fetched = bench.fetch("dbfs:/Volumes/c/s/v/d/").unwrap();
    assert_eq!(fetched.path, fetched.folder);
    assert_eq!(read(&fetched.folder, "a b%ä.jsonl"), b"one");
    assert_eq!(read(&fetched.folder, "e/f.jsonl"), rows(1));
    assert_eq!(read(&fetched.folder, "empty.jsonl"), b"");
    assert!(!fetched.folder.join("README.md").exists());
    assert!(!fetched.folder.join("other.jsonl").exists());
    // What is here is not fetched again, nor asked for where the version is known.
    let asked = bench.server.asked("GET /api/2.0/fs/files");
    assert_eq!(asked, 3);
    for path in ["dbfs:/Volumes/c/s/v/d", "/Volumes/c/s/v/d"] {
        assert_eq!(bench.fetch(path).unwrap(), fetched);
    }
    assert_eq!(bench.server.asked("GET /api/2.0/fs/files"), asked);
    let path = VolumePath::parse("dbfs:/Volumes/c/s/v/d").unwrap().unwrap();
    assert_eq!(cached(&path, bench.cache.path(), &fetched.version), Some(fetched.clone()));
    assert_eq!(cached(&path, bench.cache.path(), "../../etc"), None);
    fs::write(fetched.folder.join("e/f.jsonl"), "short").unwrap();
    assert_eq!(cached(&path, bench.cache.path(), &fetched.version), None);
    assert_eq!(read(&bench.fetch("dbfs:/Volumes/c/s/v/d").unwrap().folder, "e/f.jsonl"), rows(1));
}

#[test]
fn requests_are_those_of_the_files_api() {
    let bench = Bench::new(&[("/Volumes/c/s/v/x y.jsonl", b"one")]);
    let fetched = bench.fetch("dbfs:/Volumes/c/s/v/x y.jsonl").unwrap();
    assert_eq!(read(&fetched.folder, "x y.jsonl"), b"one");
    assert_eq!(fetched.path, fetched.folder.join("x y.jsonl"));
    bench.fetch("dbfs:/Volumes/c/s/v").unwrap();
    for request in [
        "HEAD /api/2.0/fs/files/Volumes/c/s/v/x%20y.jsonl",
        "GET /api/2.0/fs/files/Volumes/c/s/v/x%20y.jsonl",
        "GET /api/2.0/fs/directories/Volumes/c/s/v",
    ] {
        assert!(bench.server.asked(request) > 0, "{request}");
    }
}

#[test]
fn folders_of_many_files_come_in_pages() {
    let names: Vec<_> = (0..25).map(|number| format!("/Volumes/c/s/v/{number:02}.jsonl")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let bench = Bench::new(&files);
    let fetched = bench.fetch("dbfs:/Volumes/c/s/v").unwrap();
    for name in &names {
        assert_eq!(read(&fetched.folder, name.rsplit('/').next().unwrap()), name.as_bytes());
    }
    assert!(bench.server.asked("GET /api/2.0/fs/directories/Volumes/c/s/v?page_token=") >= 2);
}

#[test]
fn broken_connections_are_gone_on_with() {
    let bench = Bench::new(&[("/Volumes/c/s/v/f.jsonl", &rows(2))]);
    let faults =
        [Fault::Status(503), Fault::Cut(70_000), Fault::Cut(30_000), Fault::Status(429), Fault::Cut(0)];
    bench.server.fail("GET /api/2.0/fs/files", faults.to_vec());
    let fetched = bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap();
    assert_eq!(read(&fetched.folder, "f.jsonl"), rows(2));
    assert_eq!(bench.server.ranges(), ["bytes=70000-", "bytes=100000-", "bytes=100000-", "bytes=100000-"]);
}

#[test]
fn a_fetch_that_was_given_up_is_gone_on_with() {
    let bench = Bench::new(&[("/Volumes/c/s/v/f.jsonl", &rows(3))]);
    let faults = [vec![Fault::Cut(70_000)], vec![Fault::Status(500); 6]].concat();
    bench.server.fail("GET /api/2.0/fs/files", faults);
    let error = bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap_err();
    assert!(matches!(error, WorkspaceError::Unreachable { .. }), "{error}");
    assert!(
        error.to_string().contains("it answers 500 Internal Server Error; what was fetched is kept"),
        "{error}"
    );
    let fetched = bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap();
    assert_eq!(read(&fetched.folder, "f.jsonl"), rows(3));
    assert_eq!(bench.server.ranges().last().unwrap(), "bytes=70000-");
}

#[test]
fn a_workspace_that_never_comes_on_is_given_up() {
    let bench = Bench::new(&[("/Volumes/c/s/v/f.jsonl", &rows(4))]);
    bench.server.fail("GET /api/2.0/fs/files", vec![Fault::Whole(70_000); 40]);
    let error = bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap_err().to_string();
    assert!(error.contains("it sent 70000 bytes of 200000"), "{error}");
    assert!(bench.server.asked("GET /api/2.0/fs/files") <= 12);
}

#[test]
fn what_the_workspace_refuses_is_named() {
    let bench = Bench::new(&[("/Volumes/c/s/v/f.jsonl", b"rows"), ("/Volumes/c/s/w/a.md", b"no rows")]);
    let message = |error: WorkspaceError| {
        let text = format!("{error} {error:?}");
        assert!(!text.contains("s3cret") && text.contains(&bench.server.address()), "{text}");
        error.to_string()
    };
    let error = message(bench.fetch_as("dbfs:/Volumes/c/s/v", "old-s3cret", None).unwrap_err());
    assert!(error.contains("does not take DATABRICKS_TOKEN (401), which is wrong or has expired"), "{error}");
    bench.server.fail("HEAD", vec![Fault::Status(403)]);
    let error = message(bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap_err());
    assert!(error.contains("read /Volumes/c/s/v/f.jsonl (403)") && error.contains("READ VOLUME"), "{error}");
    bench.server.fail("GET", vec![Fault::Status(403)]);
    let error = message(bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap_err());
    assert!(error.contains("no right for [redacted]"), "{error}");
    let error = message(bench.fetch("dbfs:/Volumes/c/s/v/none").unwrap_err());
    assert!(error.contains("has no /Volumes/c/s/v/none"), "{error}");
    let error = message(bench.fetch("dbfs:/Volumes/c/s/w").unwrap_err());
    assert!(
        error.contains("dbfs:/Volumes/c/s/w on the workspace") && error.contains("no file of a kind"),
        "{error}"
    );
}

#[test]
fn a_version_is_kept_when_the_volume_moves_on() {
    let bench = Bench::new(&[("/Volumes/c/s/v/f.jsonl", b"first")]);
    let first = bench.fetch("dbfs:/Volumes/c/s/v").unwrap();
    bench.server.write("/Volumes/c/s/v/f.jsonl", b"later");
    let later = bench.fetch("dbfs:/Volumes/c/s/v").unwrap();
    assert_ne!(first.version, later.version);
    assert_eq!(read(&first.folder, "f.jsonl"), b"first");
    assert_eq!(read(&later.folder, "f.jsonl"), b"later");
    fs::remove_dir_all(&first.folder).unwrap();
    let error = bench.fetch_as("dbfs:/Volumes/c/s/v", TOKEN, Some(&first.version)).unwrap_err().to_string();
    assert!(error.contains(&format!("no longer version {}", first.version)), "{error}");
}

#[test]
fn a_file_that_changes_meanwhile_is_not_taken() {
    let bench = Bench::new(&[("/Volumes/c/s/v/f.jsonl", &rows(5))]);
    bench.server.fail("GET /api/2.0/fs/files", vec![Fault::Change(rows(6))]);
    let error = bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap_err();
    assert!(matches!(error, WorkspaceError::Unsteady { .. }), "{error}");
    let fetched = bench.fetch("dbfs:/Volumes/c/s/v/f.jsonl").unwrap();
    assert_eq!(read(&fetched.folder, "f.jsonl"), rows(6));
}
