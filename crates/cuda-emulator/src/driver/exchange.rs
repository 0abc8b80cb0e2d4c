//! Messages between two ranks: the sends and receives of a group, which begin and end together.
//!
//! A rank's messages are posted when its stream comes to them, and each waits for its receiver: what is sent is what lay
//! there then, and the sender does not wait. Between two ranks messages keep their order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::across::Folder;
use super::collective::{Element, Member};
use super::{World, lock};
use crate::EmulatorError;

/// A message, as one of its ends sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message {
    Send { to: usize, from: u64, element: Element, count: usize },
    Receive { from: usize, into: u64, element: Element, count: usize },
}

/// What was sent and not received, by sender and receiver, and how many messages each pair has had.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    here: BTreeMap<(usize, usize), VecDeque<Letter>>,
    sent: BTreeMap<(usize, usize), usize>,
    received: BTreeMap<(usize, usize), usize>,
}

#[derive(Debug)]
pub(crate) struct Letter {
    element: Element,
    count: usize,
    bytes: Vec<u8>,
}

/// The name of a message that goes to another process.
fn name((from, to): (usize, usize), number: usize) -> String {
    format!("{from}-to-{to}-{number}")
}

impl Letters {
    fn post(
        &mut self,
        folder: Option<&Folder>,
        pair: (usize, usize),
        letter: Letter,
    ) -> Result<(), EmulatorError> {
        let number = self.sent.entry(pair).or_default();
        *number += 1;
        match folder {
            None => self.here.entry(pair).or_default().push_back(letter),
            Some(folder) => {
                let said = format!("{:?} {}\n", letter.element, letter.count);
                folder.post(&name(pair, *number), &[said.as_bytes(), &letter.bytes].concat())?;
            }
        }
        Ok(())
    }

    fn has(&self, folder: Option<&Folder>, pair: (usize, usize), count: usize) -> bool {
        match folder {
            None => self.here.get(&pair).map_or(0, VecDeque::len) >= count,
            Some(folder) => {
                let received = self.received.get(&pair).copied().unwrap_or(0);
                (1..=count).all(|next| folder.has(&name(pair, received + next)))
            }
        }
    }

    /// The next message, which has come; nothing if it is not of that kind.
    fn take(
        &mut self,
        folder: Option<&Folder>,
        pair: (usize, usize),
        (element, count): (Element, usize),
    ) -> Result<Option<Vec<u8>>, EmulatorError> {
        let number = self.received.entry(pair).or_default();
        *number += 1;
        let Some(folder) = folder else {
            let letter = self.here.get_mut(&pair).and_then(VecDeque::pop_front);
            let letter = letter.filter(|letter| (letter.element, letter.count) == (element, count));
            return Ok(letter.map(|letter| letter.bytes));
        };
        let name = name(pair, *number);
        let bytes = folder.read(&name)?;
        folder.remove(&name);
        Ok(bytes.strip_prefix(format!("{element:?} {count}\n").as_bytes()).map(<[u8]>::to_vec))
    }
}

/// What a rank's group has still to do.
pub(crate) struct Exchange {
    messages: Vec<Message>,
    is_sent: bool,
    /// The rank's next collective.
    number: u64,
}

impl Exchange {
    pub fn new(member: &Arc<Member>, messages: Vec<Message>) -> Self {
        Self { messages, is_sent: false, number: member.next_number() }
    }

    /// Whether there is something to do: to send, or to receive all that is expected.
    pub fn can_run(&self, member: &Member) -> bool {
        let hangs = member.hangs_before(self.number);
        member.has_aborted() || !hangs && (!self.is_sent || self.has_come(member))
    }

    fn has_come(&self, member: &Member) -> bool {
        let mut expected: BTreeMap<usize, usize> = BTreeMap::new();
        for message in &self.messages {
            if let Message::Receive { from, .. } = message {
                *expected.entry(*from).or_default() += 1;
            }
        }
        let (letters, folder) = (lock(&member.communicator.letters), member.communicator.folder.as_ref());
        expected.into_iter().all(|(from, count)| letters.has(folder, (from, member.rank), count))
    }

    /// Posts what is to be sent, once.
    pub fn send(&mut self, member: &Member, world: &World) -> Result<(), EmulatorError> {
        if std::mem::replace(&mut self.is_sent, true) || member.has_aborted() {
            return Ok(());
        }
        for message in &self.messages {
            if let Message::Send { to, from, element, count } = *message {
                let mut device = world.device(member.device);
                let bytes = device.read_input("a message", from, count * element.size())?;
                let letter = Letter { element, count, bytes };
                let folder = member.communicator.folder.as_ref();
                lock(&member.communicator.letters).post(folder, (member.rank, to), letter)?;
            }
        }
        Ok(())
    }

    /// Takes what has come, if all has; whether the exchange is over.
    pub fn receive(&self, member: &Member, world: &World) -> Result<bool, EmulatorError> {
        if member.has_aborted() {
            return Ok(true);
        }
        if !self.has_come(member) {
            return Ok(false);
        }
        for message in &self.messages {
            let Message::Receive { from, into, element, count } = *message else { continue };
            let place = (from, member.rank);
            let folder = member.communicator.folder.as_ref();
            let letter = lock(&member.communicator.letters).take(folder, place, (element, count))?;
            let Some(bytes) = letter else {
                let problem = format!(
                    "rank {} receives {count} of {element:?} from rank {from}, which sends something else",
                    member.rank
                );
                return Err(EmulatorError::Collective { problem });
            };
            world.device(member.device).memory().write(into, &bytes)?;
        }
        Ok(true)
    }
}
