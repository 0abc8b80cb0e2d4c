//! Places in a store that is played by a small server on the loopback interface, and drops connections.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod server;

use std::fs;

use server::{Fault, Server};
use tessera_stores::{Credentials, Object, Place, Problem, StoreError};

/// A large file: more than a socket holds.
const LARGE: usize = 8 << 20;

fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn place_at(server: &Server, path: &str) -> Place {
    let credentials = Credentials::Aws {
        access_key_id: "key".to_owned(),
        secret_access_key: server::SECRET.to_owned(),
        session_token: Some("token".to_owned()),
        region: Some("eu-central-1".to_owned()),
        endpoint: Some(server.address().to_owned()),
    };
    Place::with_credentials(&format!("s3://bucket/{path}"), &credentials).unwrap()
}

fn only(place: &Place) -> Object {
    place.file().unwrap().expect("the file is there")
}

fn fetch(place: &Place, object: &Object) -> Result<(Vec<u8>, Vec<u64>), StoreError> {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut told) = (folder.path().join("file"), Vec::new());
    let fetched = place.download(object, &path, &mut |done| told.push(done));
    if fetched.is_err() {
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "a file that did not come leaves nothing"
        );
    }
    fetched.map(|()| (fs::read(&path).unwrap(), told))
}

#[test]
fn a_file_comes_whole_and_what_comes_is_told() {
    let server = Server::new();
    server.put("a/b.bin", content(LARGE));
    server.put("a/empty", Vec::new());
    let place = place_at(&server, "a/b.bin");
    let object = only(&place);
    assert_eq!(object.size, LARGE as u64);
    let (bytes, told) = fetch(&place, &object).unwrap();
    assert!(bytes == content(LARGE));
    assert!(told.is_sorted() && told.last() == Some(&(LARGE as u64)), "{told:?}");
    let empty = place_at(&server, "a/empty");
    assert_eq!(fetch(&empty, &only(&empty)).unwrap().0, b"");
    assert_eq!(place_at(&server, "a/missing").file().unwrap(), None);
}

#[test]
fn a_dropped_connection_is_taken_up_where_it_ended() {
    let server = Server::new();
    server.put("x", content(LARGE));
    let place = place_at(&server, "x");
    let object = only(&place);
    // More often than there are repetitions without anything coming.
    server.fail("x", vec![Fault::Cut; 12]);
    let (bytes, _) = fetch(&place, &object).unwrap();
    assert!(bytes == content(LARGE));
    let ranges: Vec<_> =
        server.requests().into_iter().filter(|request| request.starts_with("GET /bucket/x")).collect();
    assert!(ranges.len() > 12, "{ranges:?}");
    assert!(
        ranges[1..].iter().all(|request| request.contains("range: bytes=") && !request.contains("bytes=0-")),
        "{ranges:?}"
    );
    let etag = object.etag.unwrap();
    assert!(ranges.iter().all(|request| request.contains(&format!("if-match: {etag}"))), "{ranges:?}");
    assert!(server.bytes_sent() < 2 * LARGE, "what is there is not asked for again");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_pieced_together() {
    let server = Server::new();
    server.put("x", content(LARGE));
    let place = place_at(&server, "x");
    let object = only(&place);
    server.fail("x", vec![Fault::CutAndChange]);
    let error = fetch(&place, &object).unwrap_err();
    assert!(matches!(error.problem, Problem::Changed), "{error}");
    assert!(error.to_string().contains("s3://bucket/x: it was changed while it was read"), "{error}");
}

#[test]
fn a_store_that_stays_away_is_given_up() {
    let server = Server::new();
    server.put("x", content(LARGE));
    let place = place_at(&server, "x");
    let object = only(&place);
    server.fail("x", vec![Fault::Status(503, ""); 1000]);
    let error = fetch(&place, &object).unwrap_err();
    assert!(error.passes() && error.to_string().contains("does not answer as it should"), "{error}");
}

#[test]
fn refusals_say_what_helps() {
    let server = Server::new();
    server.put("x", content(10));
    let place = place_at(&server, "x");
    let object = only(&place);
    let refusals = [
        (403, "AccessDenied", "access is not permitted (AccessDenied: No)"),
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        (404, "NoSuchBucket", "there is no such bucket"),
        (404, "NoSuchKey", "nothing is there; check the path"),
    ];
    for (status, code, said) in refusals {
        server.fail("x", vec![Fault::Status(status, code)]);
        let error = fetch(&place, &object).unwrap_err().to_string();
        assert!(error.starts_with("s3://bucket/x: ") && error.contains(said), "{error}");
        assert!(!error.contains(server::SECRET), "{error}");
    }
}

#[test]
fn a_folder_is_listed_in_the_order_of_paths_and_only_what_is_in_it() {
    let server = Server::new();
    for name in ["d/a/2.jsonl", "d/a.jsonl", "d/a-b/1.jsonl", "d2/x.jsonl", "d"] {
        server.put(name, content(3));
    }
    let names = |objects: Vec<Object>| objects.into_iter().map(|object| object.name).collect::<Vec<_>>();
    assert_eq!(names(place_at(&server, "d").list().unwrap()), ["a/2.jsonl", "a-b/1.jsonl", "a.jsonl"]);
    assert_eq!(names(place_at(&server, "d/").list().unwrap()).len(), 3);
    assert!(place_at(&server, "none").list().unwrap().is_empty());
}

#[test]
fn names_are_asked_for_as_they_are_listed() {
    let server = Server::new();
    let names = ["language=de%20at/part-0", "language=é%2F100%25/part~1#[x]", "Ω{0}.jsonl"];
    for name in names {
        server.put(&format!("d/{name}"), name.as_bytes().to_vec());
    }
    let place = place_at(&server, "d");
    for object in place.list().unwrap() {
        let below = place.join(&object.name);
        assert_eq!(fetch(&below, &object).unwrap().0, object.name.as_bytes());
        assert_eq!(only(&below).etag, object.etag);
        let (folder, name) = below.parent().unwrap();
        assert_eq!(folder.join(&name).key(), below.key());
        assert!(names.contains(&object.name.as_str()), "{object:?}");
    }
    assert_eq!(place.list().unwrap().len(), names.len());
    let folder = tempfile::tempdir().unwrap();
    let fetched = place.fetch(&place.list().unwrap(), folder.path(), &|_, _| {}).unwrap();
    for file in fetched.files {
        assert!(names.contains(&fs::read_to_string(&file).unwrap().as_str()), "{file:?}");
    }
    place.join("a%b").write(b"text".to_vec()).unwrap();
    assert_eq!(server.get("d/a%b").unwrap(), b"text");
    assert_eq!(place.join("..").key(), "d/%2E%2E");
}

#[test]
fn what_is_listed_without_quotes_is_the_same_content() {
    let server = Server::new();
    server.put("d/x", content(LARGE));
    let listed = place_at(&server, "d").list().unwrap();
    server.list_bare_etags();
    assert_eq!(place_at(&server, "d").list().unwrap(), listed);
    assert!(fetch(&place_at(&server, "d/x"), &listed[0]).unwrap().0 == content(LARGE));
    assert_eq!(listed[0].etag, only(&place_at(&server, "d/x")).etag);
}

#[test]
fn files_are_uploaded_and_removed() {
    let server = Server::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    // Two parts and a rest.
    let bytes = content((40 << 20) + 7);
    fs::write(&path, &bytes).unwrap();
    let place = place_at(&server, "run/large");
    let mut told = Vec::new();
    let mut file = fs::File::open(&path).unwrap();
    place.upload(&mut file, &path, bytes.len() as u64, &mut |done| told.push(done)).unwrap();
    assert_eq!(told.last(), Some(&(bytes.len() as u64)));
    assert!(server.get("run/large").unwrap() == bytes);
    place_at(&server, "run/small").write(b"text".to_vec()).unwrap();
    assert_eq!(place_at(&server, "run/small").read(4).unwrap(), b"text");
    let error = place_at(&server, "run/small").read(3).unwrap_err();
    assert!(matches!(error.problem, Problem::TooLarge { size: 4, limit: 3 }), "{error}");
    let small = place_at(&server, "run/small");
    for (most, end) in [(3, "ext"), (9, "text")] {
        assert_eq!(small.read_end(&only(&small), most).unwrap(), end.as_bytes());
    }
    for _ in 0..2 {
        place.delete().unwrap();
        assert!(server.get("run/large").is_none());
    }
}

#[test]
fn a_web_server_has_single_files() {
    let server = Server::new();
    server.put("a b.jsonl", content(LARGE));
    let place = Place::parse(&format!("{}/bucket/a%20b.jsonl", server.address())).unwrap();
    let object = only(&place);
    server.fail("a b.jsonl", vec![Fault::Cut; 2]);
    assert!(fetch(&place, &object).unwrap().0 == content(LARGE));
    assert!(matches!(place.list().unwrap_err().problem, Problem::SingleFile));
    assert!(matches!(place.write(Vec::new()).unwrap_err().problem, Problem::SingleFile));
}
