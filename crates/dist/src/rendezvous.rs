//! Where the processes of a run meet before they are ranks: process 0 listens at the master's address, the others come and
//! are told what they need to join.
//!
//! Each process says which it is and how many ranks it brings; when all are there, each is told its first rank, the number
//! of all ranks, and some bytes that process 0 has for all. Both sides prove that they know the run's secret, by hashing
//! it with numbers that the other has just drawn; without a secret the proof only tells a process of Tessera from
//! another program. The port is open to anybody meanwhile: whoever says something else, says nothing, or comes twice is
//! turned away, and the meeting goes on. What is said is not encrypted.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::DistError;
use crate::waiting::Waiting;

/// What every message begins with: another program, or another version, says something else.
const MAGIC: [u8; 8] = *b"tessera1";
/// Bytes of a number that is drawn.
const NONCE: usize = 16;
/// Bytes of a proof.
const PROOF: usize = 32;
/// Process 0's greeting: magic and its number.
const GREETING: usize = MAGIC.len() + NONCE;
/// The answer: magic, the other's number, which process of how many with how many ranks, the proof.
const ANSWER: usize = MAGIC.len() + NONCE + 3 * 4 + PROOF;
/// Bytes for all processes, or of a refusal, at most.
const MOST_BYTES: usize = 1 << 16;
/// What the last message is: everything, or why not.
const WELCOME: u8 = 1;
const REFUSAL: u8 = 0;
/// How often process 0 looks at its port, and the others try to reach it.
const PAUSE: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(200);
/// How long one connection may take to say what it has to say.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that have not said who they are: more are turned away, the oldest first.
const MOST_STRANGERS: usize = 256;

/// What a launcher and the environment say of the meeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// The host of process 0.
    pub host: String,
    /// The port at which it listens.
    pub port: u16,
    /// What all processes of the run know and nobody else does; empty for none.
    pub secret: Vec<u8>,
    /// This process, counted from 0.
    pub process: usize,
    /// All processes.
    pub processes: usize,
}

/// What a process knows when all have met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// The first of this process's ranks.
    pub first_rank: usize,
    /// The ranks of all processes.
    pub world_size: usize,
    /// What process 0 has for all.
    pub bytes: Vec<u8>,
}

impl Rendezvous {
    /// Reads MASTER_ADDR, MASTER_PORT and TESSERA_RENDEZVOUS_SECRET, of which `variable` gives the values.
    ///
    /// # Errors
    /// When the address is missing or the port is none.
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
        process: usize,
        processes: usize,
    ) -> Result<Self, DistError> {
        let found = |name: &str| variable(name).map(|value| value.trim().to_owned());
        let refused = |address: &str, reason: &str| DistError::Rendezvous {
            address: address.to_owned(),
            reason: format!(
                "{reason}: set MASTER_ADDR to the host of process 0 and MASTER_PORT to a free port there"
            ),
        };
        let host = found("MASTER_ADDR").filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| refused("no address", "MASTER_ADDR is not set"))?;
        let port = found("MASTER_PORT").unwrap_or_default();
        let is_no_port = || refused(&host, &format!("MASTER_PORT is '{port}', expected 1 to 65535"));
        let port = port.parse().ok().filter(|&port| port > 0).ok_or_else(is_no_port)?;
        let secret = variable("TESSERA_RENDEZVOUS_SECRET").unwrap_or_default().into_bytes();
        Ok(Self { host, port, secret, process, processes })
    }

    /// Meets the others with `ranks` ranks of this process, in as long as `patience`. `bytes` makes what process 0 has for
    /// all; the others do not call it.
    ///
    /// # Errors
    /// When `bytes` fails, the port cannot be had, process 0 refuses this one or cannot be reached, or others do not come.
    pub fn meet(
        &self,
        ranks: usize,
        patience: Duration,
        bytes: impl FnOnce() -> Result<Vec<u8>, DistError>,
    ) -> Result<Met, DistError> {
        match self.process {
            0 => self.receive_all(ranks, patience, &bytes()?),
            _ => self.come(ranks, patience),
        }
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn failed(&self, reason: impl ToString) -> DistError {
        DistError::Rendezvous { address: self.address(), reason: reason.to_string() }
    }

    fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }

    /// Listens at the address, or, where the host is known here by another one, at all of this machine.
    fn listen(&self) -> Result<TcpListener, DistError> {
        let addresses = self.resolve().map_err(|error| self.failed(error))?;
        let listener = TcpListener::bind(&addresses[..]).or_else(|error| match error.kind() {
            ErrorKind::AddrNotAvailable => TcpListener::bind(("0.0.0.0", self.port)),
            _ => Err(error),
        });
        let unheard = |error| format!("process 0 cannot listen there ({error}); MASTER_PORT must be free");
        let listener = listener.map_err(|error| self.failed(unheard(error)))?;
        listener.set_nonblocking(true).map_err(|error| self.failed(error))?;
        Ok(listener)
    }

    /// What process 0 does.
    fn receive_all(&self, ranks: usize, patience: Duration, bytes: &[u8]) -> Result<Met, DistError> {
        let mut reception = Reception { rendezvous: self, strangers: Vec::new(), guests: Vec::new() };
        reception.guests.resize_with(self.processes, || None);
        let (listener, mut waiting) = (self.listen()?, Waiting::begin());
        while let Some(missing) = reception.missing() {
            waiting.look();
            if waiting.waited() >= patience {
                let seconds = patience.as_secs_f64();
                let error = DistError::Unmet { address: self.address(), processes: missing, seconds };
                reception.dismiss(&error.to_string());
                return Err(error);
            }
            reception.look(&listener)?;
            thread::sleep(waiting.pause(PAUSE));
        }
        reception.welcome(ranks, bytes)
    }

    /// What the others do: they try until they are welcomed or refused.
    fn come(&self, ranks: usize, patience: Duration) -> Result<Met, DistError> {
        let mut waiting = Waiting::begin();
        loop {
            waiting.look();
            let left = patience.saturating_sub(waiting.waited());
            let reason = match self.try_to_come(ranks, left) {
                Ok(met) => return Ok(met),
                Err(Trouble::Refused(reason)) => {
                    return Err(
                        self.failed(format!("process 0 turned this process {} away: {reason}", self.process))
                    );
                }
                Err(Trouble::Unreached(reason)) => reason,
            };
            if left.is_zero() {
                let (process, seconds) = (self.process, patience.as_secs_f64());
                let text = format!(
                    "process {process} did not reach process 0 there within {seconds} s (dist_startup_timeout): {reason}"
                );
                return Err(self.failed(text));
            }
            thread::sleep(waiting.pause(RETRY.min(left)));
        }
    }

    fn try_to_come(&self, ranks: usize, left: Duration) -> Result<Met, Trouble> {
        // Process 0 tells of its own deadline, which is to come first.
        let patience = left.max(RETRY) + PATIENCE;
        let mut stream = self.connect(left.clamp(RETRY, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting)?;
        let (magic, theirs) = greeting.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Trouble::Unreached("another program listens there".to_owned()));
        }
        let own = draw()?;
        let place = [self.process, self.processes, ranks].map(number).concat();
        let mut answer = [&MAGIC[..], &own, &place].concat();
        answer.extend(self.prove(&[theirs, &own, &place]));
        stream.write_all(&answer)?;
        stream.set_read_timeout(Some(patience))?;
        let mut head = [0; 1 + 4];
        stream.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MOST_BYTES + 8 {
            return Err(Trouble::Unreached("another program listens there".to_owned()));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof)?;
        if head[0] != WELCOME {
            return Err(Trouble::Refused(String::from_utf8_lossy(&body).into_owned()));
        }
        if self.prove(&[&own, &body]) != proof {
            return Err(Trouble::Refused("it does not know this run's TESSERA_RENDEZVOUS_SECRET".to_owned()));
        }
        let (place, bytes) = body.split_at_checked(8).ok_or(ErrorKind::UnexpectedEof)?;
        let [first_rank, world_size] = [0, 4]
            .map(|at| u32::from_le_bytes([place[at], place[at + 1], place[at + 2], place[at + 3]]) as usize);
        Ok(Met { first_rank, world_size, bytes: bytes.to_vec() })
    }

    fn connect(&self, patience: Duration) -> std::io::Result<TcpStream> {
        let mut error = std::io::Error::from(ErrorKind::AddrNotAvailable);
        for address in self.resolve()? {
            match TcpStream::connect_timeout(&address, patience) {
                // Where nobody listens yet, a connection may get the port that it goes to for its own, and reach itself.
                Ok(stream) if stream.local_addr()? == address => error = ErrorKind::ConnectionRefused.into(),
                Ok(stream) => return Ok(stream),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    /// What only those who know the secret can make of `parts`. Hashed twice: nothing can be appended.
    fn prove(&self, parts: &[&[u8]]) -> [u8; PROOF] {
        let mut inner = Sha256::new();
        inner.update(&self.secret);
        for part in parts {
            inner.update((part.len() as u64).to_le_bytes());
            inner.update(part);
        }
        let mut outer = Sha256::new();
        outer.update(&self.secret);
        outer.update(inner.finalize());
        outer.finalize().into()
    }
}

/// Why a process was not welcomed.
enum Trouble {
    /// Process 0 is not there yet, or not to be reached: to be tried again.
    Unreached(String),
    /// It does not want this process.
    Refused(String),
}

impl<E: Into<std::io::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Unreached(error.into().to_string())
    }
}

/// Bytes that nobody can guess.
fn draw() -> std::io::Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// No run has more processes or ranks than fit.
fn number(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

/// Those who have come to process 0.
struct Reception<'a> {
    rendezvous: &'a Rendezvous,
    strangers: Vec<Stranger>,
    /// By process; the place of process 0 stays empty.
    guests: Vec<Option<Guest>>,
}

/// A connection that has not said yet who it is.
struct Stranger {
    stream: TcpStream,
    nonce: [u8; NONCE],
    said: Vec<u8>,
    waiting: Waiting,
}

/// A process that waits to be welcomed.
struct Guest {
    stream: TcpStream,
    nonce: [u8; NONCE],
    ranks: usize,
}

impl Reception<'_> {
    /// The processes that have not come, or have gone again; `None` if all are there.
    fn missing(&self) -> Option<Vec<usize>> {
        let is_there = |guest: &Option<Guest>| guest.as_ref().is_some_and(Guest::is_there);
        let absent = self.guests.iter().enumerate().skip(1).filter(|(_, guest)| !is_there(guest));
        let absent: Vec<usize> = absent.map(|(process, _)| process).collect();
        (!absent.is_empty()).then_some(absent)
    }

    /// Greets who has come, and hears who has something to say.
    fn look(&mut self, listener: &TcpListener) -> Result<(), DistError> {
        while let Ok((stream, _)) = listener.accept() {
            let nonce = draw().map_err(|error| self.rendezvous.failed(error))?;
            // Whoever cannot be greeted has gone again.
            if stream.set_nonblocking(true).is_ok()
                && (&stream).write_all(&[&MAGIC[..], &nonce].concat()).is_ok()
            {
                let (said, waiting) = (Vec::with_capacity(ANSWER), Waiting::begin());
                self.strangers.push(Stranger { stream, nonce, said, waiting });
            }
        }
        let surplus = self.strangers.len().saturating_sub(MOST_STRANGERS);
        self.strangers.drain(..surplus);
        for mut stranger in std::mem::take(&mut self.strangers) {
            match stranger.hear() {
                Heard::Nothing => {}
                Heard::Part => self.strangers.push(stranger),
                Heard::All => self.admit(stranger),
            }
        }
        Ok(())
    }

    /// Takes a stranger for the process that it says it is, or turns it away.
    fn admit(&mut self, stranger: Stranger) {
        let Stranger { stream, nonce, said, .. } = stranger;
        let (rest, proof) = said.split_at(ANSWER - PROOF);
        let (theirs, place) = rest[MAGIC.len()..].split_at(NONCE);
        let word =
            |at: usize| u32::from_le_bytes([place[at], place[at + 1], place[at + 2], place[at + 3]]) as usize;
        let (process, processes, ranks) = (word(0), word(4), word(8));
        let own = self.rendezvous;
        let reason = if own.prove(&[&nonce, theirs, place]) != proof {
            "it does not know this run's TESSERA_RENDEZVOUS_SECRET".to_owned()
        } else if processes != own.processes {
            format!(
                "it says that there are {processes} processes, where process 0 knows of {}",
                own.processes
            )
        } else if process == 0 || process >= processes {
            format!("there is no other process {process} of {processes}")
        } else if self.guests[process].as_ref().is_some_and(Guest::is_there) {
            format!("process {process} has come already: two processes were started as the same one")
        } else {
            let mut nonce = [0; NONCE];
            nonce.copy_from_slice(theirs);
            self.guests[process] = Some(Guest { stream, nonce, ranks });
            return;
        };
        refuse(&stream, &reason);
    }

    /// Tells all who have come that the run does not begin.
    fn dismiss(&self, reason: &str) {
        self.guests.iter().flatten().for_each(|guest| refuse(&guest.stream, reason));
    }

    /// Tells every process its ranks. `ranks` are those of process 0.
    fn welcome(self, ranks: usize, bytes: &[u8]) -> Result<Met, DistError> {
        let of = |guest: &Option<Guest>| guest.as_ref().map_or(ranks, |guest| guest.ranks);
        let world_size = self.guests.iter().map(of).sum();
        let mut first_rank = 0;
        for (process, guest) in self.guests.iter().enumerate() {
            if let Some(guest) = guest {
                let body = [&number(first_rank)[..], &number(world_size), bytes].concat();
                let proof = self.rendezvous.prove(&[&guest.nonce, &body]);
                let said = say(&guest.stream, WELCOME, &body, &proof);
                said.map_err(|error| {
                    self.rendezvous.failed(format!("process {process} came and went again ({error})"))
                })?;
            }
            first_rank += of(guest);
        }
        Ok(Met { first_rank: 0, world_size, bytes: bytes.to_vec() })
    }
}

enum Heard {
    /// It says nothing that is of use.
    Nothing,
    Part,
    All,
}

impl Stranger {
    fn hear(&mut self) -> Heard {
        let mut bytes = [0; ANSWER];
        match self.stream.read(&mut bytes[self.said.len()..]) {
            Ok(0) => return Heard::Nothing,
            Ok(count) => {
                let start = self.said.len();
                self.said.extend(&bytes[start..start + count]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return Heard::Nothing,
        }
        let magic = self.said.len().min(MAGIC.len());
        if self.said[..magic] != MAGIC[..magic] {
            return Heard::Nothing;
        }
        if self.said.len() == ANSWER {
            return Heard::All;
        }
        self.waiting.look();
        let is_late = self.waiting.waited() >= PATIENCE;
        self.waiting.pause(PAUSE);
        if is_late { Heard::Nothing } else { Heard::Part }
    }
}

impl Guest {
    /// Whether the connection stands: a process that was started again comes with another.
    fn is_there(&self) -> bool {
        match self.stream.peek(&mut [0]) {
            Ok(count) => count > 0,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}

/// Turns a connection away. Whether it hears why is its own affair.
fn refuse(stream: &TcpStream, reason: &str) {
    let _ = say(stream, REFUSAL, reason.as_bytes(), &[0; PROOF]);
}

fn say(mut stream: &TcpStream, kind: u8, body: &[u8], proof: &[u8; PROOF]) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[&[kind][..], &number(body.len()), body, proof].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_that_was_started_again_takes_its_place() {
        // Below those that the system gives to connections, one of which would else be in its place at times.
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = (20_000 + (std::process::id() % 10_000) as u16..32_000).find(free).unwrap();
        let of = move |process| Rendezvous {
            host: "127.0.0.1".to_owned(),
            port,
            secret: Vec::new(),
            process,
            processes: 3,
        };
        let meet = move |process| {
            thread::spawn(move || of(process).meet(1, Duration::from_secs(60), || Ok(b"all".to_vec())))
        };
        let leading = meet(0);
        // Process 1 says who it is, and dies.
        let mut stream = loop {
            if let Ok(stream) = of(1).connect(PATIENCE) {
                break stream;
            }
        };
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting).unwrap();
        let (own, place) = ([7; NONCE], [1, 3, 5].map(number).concat());
        let proof = of(1).prove(&[&greeting[MAGIC.len()..], &own, &place]);
        stream.write_all(&[&MAGIC[..], &own, &place, &proof].concat()).unwrap();
        drop(stream);
        // All have come once when process 2 has, and process 0 must not go before process 1 is there.
        let last = meet(2);
        thread::sleep(Duration::from_millis(300));
        let others = [meet(1), last];
        let found = others.map(|process| process.join().unwrap().unwrap());
        assert_eq!(found.map(|met| (met.first_rank, met.world_size)), [(1, 3), (2, 3)]);
        leading.join().unwrap().unwrap();
    }

    /// A connection gets its own port from the system, and sooner or later the one that it goes to.
    #[test]
    fn a_connection_to_itself_is_none() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let [first, last] =
            [0, 1].map(|part| range.split_whitespace().nth(part).unwrap().parse::<u16>().unwrap());
        let port = (first / 2..last / 2)
            .map(|half| 2 * half)
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        let rendezvous = Rendezvous {
            host: "127.0.0.1".to_owned(),
            port: port.unwrap(),
            secret: Vec::new(),
            process: 1,
            processes: 2,
        };
        for _ in 0..2 * usize::from(last - first) {
            assert!(rendezvous.connect(PATIENCE).is_err());
        }
    }
}
