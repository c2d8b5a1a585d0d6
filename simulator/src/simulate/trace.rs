//! A hash over all that happens in a run: two runs of one seed have the same, and where they do
//! not, something in them did not come from the seed.

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    hash: u64,
}

impl Trace {
    pub(super) fn new(seed: u64) -> Self {
        Self { hash: seed ^ 0x6365_6c6c_6275_7321 }
    }
    fn mix(&mut self, value: u64) {
        self.hash = (self.hash.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    /// A task was polled.
    pub(super) fn poll(&mut self, task: u64) {
        self.mix(task);
    }
    /// Something else happened.
    pub(super) fn event(&mut self, what: &'static str, value: u64) {
        self.mix(bytes(what.as_bytes()));
        self.mix(value);
    }
    pub(super) fn hash(&self) -> u64 {
        self.hash ^ (self.hash >> 29)
    }
}

/// A hash of bytes that is the same in every run and build.
pub(super) fn bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = Trace::new(bytes.len() as u64);
    words.iter().for_each(|word| hash.mix(u64::from_le_bytes(*word)));
    rest.iter().for_each(|byte| hash.mix(u64::from(*byte)));
    hash.hash()
}
