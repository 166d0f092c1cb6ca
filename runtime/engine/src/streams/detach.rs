//! Detach keys: the sequence of keys with which a user leaves a container's terminal, and leaves
//! the container running. Docker's own command line finds them by itself; for other clients the
//! daemon must.

use berth_base::error::{Error, Kind, Result};

/// ctrl-p and ctrl-q.
pub const DEFAULT_KEYS: [u8; 2] = [16, 17];

/// The keys of `ctrl-X` in the order of their codes.
const CONTROL: &[u8; 32] = b"@abcdefghijklmnopqrstuvwxyz[\\]^_";

/// Reads keys such as `ctrl-p,ctrl-q` or `a,DEL` of an attach. None at all means the default ones.
///
/// # Errors
/// `InvalidArgument` in the words of dockerd.
pub fn parse(keys: &str) -> Result<Vec<u8>> {
    codes(keys).ok_or_else(|| Error::invalid(format!("Invalid detach keys ({keys}) provided")))
}

/// As `parse` for an exec, for which dockerd has another text and status 500.
///
/// # Errors
/// `Internal`.
pub fn parse_of_exec(keys: &str) -> Result<Vec<u8>> {
    codes(keys)
        .ok_or_else(|| Error::new(Kind::Internal, format!("Invalid escape keys ({keys}) provided")))
}

fn codes(keys: &str) -> Option<Vec<u8>> {
    match keys {
        "" => Some(DEFAULT_KEYS.to_vec()),
        keys => keys.split(',').map(code).collect(),
    }
}

fn code(key: &str) -> Option<u8> {
    if let [byte] = key.as_bytes() {
        return Some(*byte);
    }
    if key == "DEL" {
        return Some(127);
    }
    let [control] = key.strip_prefix("ctrl-")?.as_bytes() else { return None };
    CONTROL.iter().position(|known| known == control).map(|code| code as u8)
}

/// Looks for the sequence in what a client types, over the borders of chunks.
#[derive(Clone, Debug)]
pub struct Detach {
    keys: Vec<u8>,
    /// How many keys of the sequence were read last. They are held back, because the program in
    /// the container must not see them if the sequence becomes whole.
    matched: usize,
}

/// What became of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Goes on to the container.
    Pass(Vec<u8>),
    /// The sequence is whole. What was typed before it still goes to the container; what follows
    /// it does not.
    Detached(Vec<u8>),
}

impl Detach {
    /// Without keys nothing is ever found.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Takes the next chunk.
    pub fn read(&mut self, chunk: &[u8]) -> Typed {
        if self.keys.is_empty() {
            return Typed::Pass(chunk.to_vec());
        }
        let mut passed = Vec::with_capacity(self.matched + chunk.len());
        for &byte in chunk {
            self.take(byte, &mut passed);
            if self.matched == self.keys.len() {
                self.matched = 0;
                return Typed::Detached(passed);
            }
        }
        Typed::Pass(passed)
    }

    /// What is held back when the client has no more to send.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = self.keys[..self.matched].to_vec();
        self.matched = 0;
        held
    }

    /// Goes one byte further. A sequence that breaks may hold the beginning of another: after
    /// `aab` has begun with `aa`, a third `a` passes on one of them and keeps two.
    fn take(&mut self, byte: u8, passed: &mut Vec<u8>) {
        while self.matched > 0 && self.keys[self.matched] != byte {
            let held = &self.keys[..self.matched];
            let shorter = (0..self.matched).rev().find(|length| held.ends_with(&held[..*length]));
            let shorter = shorter.unwrap_or(0);
            passed.extend_from_slice(&held[..self.matched - shorter]);
            self.matched = shorter;
        }
        if self.keys[self.matched] == byte {
            self.matched += 1;
        } else {
            passed.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        for (text, codes) in [
            ("", &[16, 17][..]),
            ("ctrl-p,ctrl-q", &[16, 17]),
            ("a,ctrl-x", &[b'a', 24]),
            ("ctrl-@,ctrl-a,ctrl-z", &[0, 1, 26]),
            ("ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", &[27, 28, 29, 30, 31]),
            ("DEL,Z", &[127, b'Z']),
        ] {
            assert_eq!(parse(text).unwrap(), codes, "{text}");
        }
        for text in ["ctrl-", "ctrl-1", "ctrl-P", "ab", "a,,b", ",", "ctrl-p ", "del", "ä"] {
            let message = format!("Invalid detach keys ({text}) provided");
            assert_eq!(parse(text).unwrap_err().message, message);
            assert!(parse_of_exec(text).unwrap_err().message.starts_with("Invalid escape keys"));
        }
    }

    fn pass(text: &str) -> Typed {
        Typed::Pass(text.as_bytes().to_vec())
    }

    fn detached(text: &str) -> Typed {
        Typed::Detached(text.as_bytes().to_vec())
    }

    #[test]
    fn the_sequence_is_found_wherever_chunks_begin() {
        let cases: [(&str, &[&str], &[Typed]); 8] = [
            ("pq", &["ls", "pq"], &[pass("ls"), detached("")]),
            ("pq", &["lsp", "qx"], &[pass("ls"), detached("")]),
            ("pq", &["apqb"], &[detached("a")]),
            // What breaks the sequence sets it free.
            ("pq", &["p", "x"], &[pass(""), pass("px")]),
            ("pq", &["p", "p", "q"], &[pass(""), pass("p"), detached("")]),
            ("aab", &["aa", "a", "b"], &[pass(""), pass("a"), detached("")]),
            ("abac", &["aba", "bac"], &[pass(""), detached("ab")]),
            ("", &["pq"], &[pass("pq")]),
        ];
        for (keys, chunks, expected) in cases {
            let mut detach = Detach::new(keys.as_bytes().to_vec());
            let typed: Vec<Typed> =
                chunks.iter().map(|chunk| detach.read(chunk.as_bytes())).collect();
            assert_eq!(typed, expected, "{keys} {chunks:?}");
        }
    }

    #[test]
    fn what_is_held_back_is_not_lost_at_the_end() {
        let mut detach = Detach::new(b"pq".to_vec());
        assert_eq!(detach.read(b"xp"), pass("x"));
        assert_eq!(detach.finish(), b"p");
        assert_eq!(detach.read(b"q"), pass("q"));
    }
}
