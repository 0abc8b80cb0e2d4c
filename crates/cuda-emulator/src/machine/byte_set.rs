//! A set of byte positions: which bytes were written, which are on their way.

#[derive(Debug, Clone, Default)]
pub(super) struct ByteSet {
    words: Vec<u64>,
}

impl ByteSet {
    pub fn new(bytes: usize) -> Self {
        Self { words: vec![0; bytes.div_ceil(64)] }
    }

    /// Calls `function` with each word that the range touches and the range's bits in it.
    fn words(start: usize, length: usize, mut function: impl FnMut(usize, u64)) {
        let (mut at, end) = (start, start + length);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            function(at / 64, (u64::MAX >> (64 - count)) << (at % 64));
            at += count;
        }
    }

    pub fn insert(&mut self, start: usize, length: usize) {
        Self::words(start, length, |word, bits| self.words[word] |= bits);
    }

    pub fn remove(&mut self, start: usize, length: usize) {
        Self::words(start, length, |word, bits| self.words[word] &= !bits);
    }

    pub fn contains_all(&self, start: usize, length: usize) -> bool {
        let mut all = true;
        Self::words(start, length, |word, bits| all &= self.words[word] & bits == bits);
        all
    }

    pub fn contains_any(&self, start: usize, length: usize) -> bool {
        let mut any = false;
        Self::words(start, length, |word, bits| any |= self.words[word] & bits != 0);
        any
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Takes over `length` positions of `other`, which may be this set's own state of before.
    pub fn copy_from(&mut self, start: usize, other: &[bool]) {
        for (at, known) in other.iter().enumerate() {
            if *known { self.insert(start + at, 1) } else { self.remove(start + at, 1) }
        }
    }

    pub fn slice(&self, start: usize, length: usize) -> Vec<bool> {
        (start..start + length).map(|at| self.words[at / 64] >> (at % 64) & 1 == 1).collect()
    }
}
