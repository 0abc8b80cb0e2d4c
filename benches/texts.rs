//! Texts for benches that read them: words of syllables, the same on every machine.

/// Marsaglia's xorshift64 ("Xorshift RNGs", 2003): the same numbers on every machine.
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(17)
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One of `low..high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low) as u64) as usize
    }

    /// A place in `0..length`, the low ones more frequent, as words are in a language.
    pub fn skewed(&mut self, length: usize) -> usize {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (length as f64 * uniform.powi(4)) as usize
    }
}

/// Writes texts of lines of words.
pub struct Writer {
    /// What it draws from.
    pub random: Random,
    words: Vec<String>,
}

impl Default for Writer {
    fn default() -> Self {
        let mut random = Random::default();
        let mut letter = |letters: &[u8]| char::from(letters[random.between(0, letters.len())]);
        let syllables: Vec<[char; 3]> =
            (0..512).map(|_| [letter(b"bcdfghjklmnprstvwz"), letter(b"aeiou"), letter(b"dlmnrst")]).collect();
        let word = |_| {
            let count = random.between(1, 4);
            (0..count).flat_map(|_| syllables[random.skewed(syllables.len())]).collect()
        };
        let words = (0..8192).map(word).collect();
        Self { random, words }
    }
}

impl Writer {
    /// A text of at least `bytes` bytes.
    pub fn text(&mut self, bytes: usize) -> String {
        let mut text = String::new();
        while text.len() < bytes {
            let count = self.random.between(4, 16);
            let line: Vec<&str> =
                (0..count).map(|_| self.words[self.random.skewed(self.words.len())].as_str()).collect();
            text.push_str(&line.join(" "));
            text.push_str(".\n");
        }
        text
    }
}
