//! A number for an example that follows from its texts alone, so that equal examples have the same one in any file
//! and at any place in it.

use sha2::{Digest, Sha256};

use super::Example;

/// The fingerprint of texts in an order.
pub(crate) fn of_texts<'text>(texts: impl IntoIterator<Item = &'text str>) -> u64 {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl Example<'_> {
    /// The fingerprint of its texts and who says them.
    pub(crate) fn fingerprint(&self) -> u64 {
        match self {
            Self::Chat(messages) => {
                of_texts(messages.iter().flat_map(|message| [message.role.name(), message.content.as_ref()]))
            }
            Self::Instruction { prompt, response } => of_texts([prompt.as_ref(), response.as_ref()]),
        }
    }
}
