//! The rendezvous of a run's processes, with those who have no business there.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tessera_dist::DistError;
use tessera_dist::rendezvous::{Met, Rendezvous};

/// A port of this machine that nobody uses.
fn port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn rendezvous(port: u16, process: usize, processes: usize) -> Rendezvous {
    Rendezvous { host: "127.0.0.1".to_owned(), port, secret: b"only we know".to_vec(), process, processes }
}

/// Meets on a thread of its own, with one rank more than the process's number, until `seconds` are over.
fn meet(rendezvous: Rendezvous, seconds: u64) -> JoinHandle<Result<Met, DistError>> {
    let ranks = rendezvous.process + 1;
    let patience = Duration::from_secs(seconds);
    thread::spawn(move || rendezvous.meet(ranks, patience, || Ok(b"for all".to_vec())))
}

const LONG: u64 = 60;

/// Waits until somebody listens.
fn connect(port: u16) -> TcpStream {
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn told(process: JoinHandle<Result<Met, DistError>>) -> String {
    process.join().unwrap().unwrap_err().to_string()
}

#[test]
fn processes_learn_their_ranks_whoever_comes_first() {
    let port = port();
    // The others are there before process 0 listens.
    let others = [2, 1].map(|process| meet(rendezvous(port, process, 3), LONG));
    thread::sleep(Duration::from_millis(300));
    let [third, second] = others;
    let found =
        [meet(rendezvous(port, 0, 3), LONG), second, third].map(|process| process.join().unwrap().unwrap());
    let expected = [0, 1, 3].map(|first_rank| Met { first_rank, world_size: 6, bytes: b"for all".to_vec() });
    assert_eq!(found, expected);
    let alone = meet(rendezvous(port, 0, 1), LONG).join().unwrap().unwrap();
    assert_eq!((alone.first_rank, alone.world_size), (0, 1));
}

#[test]
fn whoever_has_no_business_there_is_turned_away_and_the_meeting_goes_on() {
    let port = port();
    let leading = meet(rendezvous(port, 0, 3), LONG);
    // Silent, half open, garbage, and another program's greeting that never ends.
    let _silent = connect(port);
    drop(connect(port));
    connect(port).write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut halting = connect(port);
    halting.write_all(b"tessera1 and then").unwrap();
    let mut endless = connect(port);
    endless.write_all(&[b'x'; 1 << 16]).unwrap();

    let stranger = Rendezvous { secret: b"guessed".to_vec(), ..rendezvous(port, 1, 3) };
    assert!(told(meet(stranger, LONG)).contains("does not know this run's TESSERA_RENDEZVOUS_SECRET"));
    let text = told(meet(rendezvous(port, 1, 4), LONG));
    assert!(text.contains("it says that there are 4 processes, where process 0 knows of 3"), "{text}");
    let text = told(meet(rendezvous(port, 3, 3), LONG));
    assert!(text.contains("there is no other process 3 of 3"), "{text}");

    let (tell, first) = channel();
    let second = rendezvous(port, 1, 3);
    let twins = [(); 2].map(|()| {
        let (rendezvous, tell) = (second.clone(), tell.clone());
        thread::spawn(move || tell.send(rendezvous.meet(1, Duration::from_secs(LONG), || Ok(Vec::new()))))
    });
    let error = first.recv().unwrap().unwrap_err().to_string();
    assert!(error.contains("process 1 has come already"), "{error}");

    let third = meet(rendezvous(port, 2, 3), LONG).join().unwrap().unwrap();
    let leading = leading.join().unwrap().unwrap();
    assert_eq!((third.first_rank, third.world_size, leading.world_size), (2, 5, 5));
    assert_eq!(first.recv().unwrap().unwrap().first_rank, 1);
    twins.into_iter().for_each(|twin| twin.join().unwrap().unwrap());
    let mut rest = Vec::new();
    let _ = halting.read_to_end(&mut rest);
    assert!(rest.len() < 32, "it was told nothing but a greeting");
}

#[test]
fn missing_processes_are_named_to_all() {
    let port = port();
    let leading = meet(rendezvous(port, 0, 4), 1);
    let waiting = meet(rendezvous(port, 2, 4), LONG);
    let expected =
        format!("rendezvous at 127.0.0.1:{port}: processes 1 and 3 of the run did not come within 1 s");
    let text = told(leading);
    assert!(text.starts_with(&expected), "{text}");
    let text = told(waiting);
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn an_address_at_which_nobody_listens_is_named() {
    let port = port();
    let text = told(meet(rendezvous(port, 1, 2), 1));
    let expected =
        format!("rendezvous at 127.0.0.1:{port}: process 1 did not reach process 0 there within 1 s");
    assert!(text.starts_with(&expected), "{text}");
}

#[test]
fn another_program_at_the_port_is_named() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"220 mail.example.org ESMTP: who are you?");
        }
    });
    let text = told(meet(rendezvous(port, 1, 2), 1));
    assert!(text.ends_with("another program listens there"), "{text}");
    let text = told(meet(rendezvous(port, 0, 2), 1));
    assert!(text.contains("process 0 cannot listen there") && text.contains("MASTER_PORT"), "{text}");
}

#[test]
fn a_master_that_does_not_know_the_secret_is_not_believed() {
    let port = port();
    let mut false_master = rendezvous(port, 0, 2);
    false_master.secret = b"guessed".to_vec();
    let other = meet(rendezvous(port, 1, 2), LONG);
    let leading = meet(false_master, 1);
    assert!(told(other).contains("TESSERA_RENDEZVOUS_SECRET"));
    assert!(leading.join().unwrap().is_err());
}

#[test]
fn the_environment_says_where_to_meet() {
    let read = |address: &str, port: &str| {
        let value = |name: &str| match name {
            "MASTER_ADDR" => (!address.is_empty()).then(|| address.to_owned()),
            "MASTER_PORT" => Some(port.to_owned()),
            _ => None,
        };
        Rendezvous::read(value, 1, 2).map_err(|error| error.to_string())
    };
    let found = read("node-0.headless", " 29500 ").unwrap();
    assert_eq!((found.host.as_str(), found.port, found.process), ("node-0.headless", 29_500, 1));
    assert!(read("", "29500").unwrap_err().contains("MASTER_ADDR is not set"));
    for port in ["", "0", "70000", "x"] {
        let error = read("node-0", port).unwrap_err();
        assert!(error.contains(&format!("MASTER_PORT is '{port}'")), "{error}");
    }
}
