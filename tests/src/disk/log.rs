//! Everything that a disk was given, in order, and what a power loss may leave of it.

/// What was done to the disk.
#[derive(Debug)]
enum Event {
    Write { at: u64, data: Vec<u8> },
    Flush,
}

/// What a disk with a write cache, which may write its blocks in any order, loses with the power.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// Everything since the last flush.
    Unflushed,
    /// Some of the blocks that were written since the last flush. The seed says which.
    Some(u64),
    /// Nothing: all of it was written.
    Nothing,
}

/// The blocks that a disk writes as a whole, or not at all.
const BLOCK: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Log {
    events: Vec<Event>,
}

impl Log {
    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        self.events.push(Event::Write { at, data: data.to_vec() });
    }

    pub(super) fn flush(&mut self) {
        self.events.push(Event::Flush);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// The writes that are on the disk if it loses power after its first `moment` events, in the
    /// order in which they take effect.
    pub(super) fn remaining(&self, moment: usize, loss: Loss) -> Vec<(u64, &[u8])> {
        let before = &self.events[..moment];
        let flush = before.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let (durable, cached) = before.split_at(flush);
        let mut remaining = blocks(durable);
        match loss {
            Loss::Unflushed => {}
            Loss::Nothing => remaining.extend(blocks(cached)),
            Loss::Some(seed) => {
                let mut random = Random::new(seed);
                // Sometimes hardly anything is lost, and sometimes nearly everything.
                let kept = 1 + random.below(9);
                remaining.extend(blocks(cached).into_iter().filter(|_| random.below(10) < kept));
            }
        }
        remaining
    }
}

/// The writes among these events, block by block.
fn blocks(events: &[Event]) -> Vec<(u64, &[u8])> {
    let mut blocks = Vec::new();
    for event in events {
        let Event::Write { at, data } = event else { continue };
        let offsets = (*at..).step_by(BLOCK);
        blocks.extend(offsets.zip(data.chunks(BLOCK)));
    }
    blocks
}

/// A sequence of numbers that is the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to `limit`, which is not one of them.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_kept_and_of_the_rest_some_blocks() {
        let mut log = Log::default();
        log.write(0, &[1; 2 * BLOCK]);
        log.flush();
        log.write(8192, &[2; 10 * BLOCK]);
        let offsets = |moment, loss| -> Vec<u64> {
            log.remaining(moment, loss).into_iter().map(|(at, _)| at).collect()
        };
        assert_eq!(offsets(1, Loss::Unflushed), [0_u64; 0]);
        assert_eq!(offsets(1, Loss::Nothing), [0, 4096]);
        assert_eq!(offsets(3, Loss::Unflushed), [0, 4096]);
        assert_eq!(offsets(3, Loss::Nothing).len(), 12);
        let some: Vec<usize> = (0..100).map(|seed| offsets(3, Loss::Some(seed)).len()).collect();
        assert!(some.iter().all(|kept| (2..=12).contains(kept)), "{some:?}");
        assert!(some.iter().min() < Some(&5) && some.iter().max() > Some(&9), "{some:?}");
    }
}
