//! Packets on `shim.sock` (SOCK_SEQPACKET): JSON under 4 KiB, one value a packet. Descriptors ride along from daemon to shim.
//!
//! Several daemons may be connected, one after the other or at once. End-of-file means that the shim is gone and that
//! `exit.json` is there to read.

use serde::{Deserialize, Serialize};

use crate::record::Failure;

/// Counts incompatible changes; a shim answers the version it speaks to `Hello`.
pub const VERSION: u32 = 1;
/// The longest packet, in bytes. What is larger goes by file.
pub const MAX_PACKET: usize = 4096;

/// Daemon to shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon, repeated in the reply.
    pub id: u64,
    pub call: Call,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    Hello,
    /// Run `exec/<exec>.json`. Descriptors: stdin, stdout, stderr; with a tty one, the pty's slave end.
    Exec {
        exec: String,
    },
    /// Copy stdio to and from who attached. Descriptors: those of stdin, stdout, stderr that are true, in this order.
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// To the first process, or to an exec with all of its descendants.
    Signal {
        exec: Option<String>,
        signal: i32,
    },
    /// Of the container's own terminal.
    Resize {
        width: u16,
        height: u16,
    },
    CloseStdin,
    /// The log was renamed: go on in a new file.
    ReopenLog,
}

/// Shim to daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packet {
    Reply { id: u64, result: Result<Answer, Failure> },
    ExecExited { exec: String, code: i32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Hello { version: u32 },
    Pid(u32),
    Done,
}

/// Serialises one packet.
///
/// # Panics
/// Never: these types always serialise.
pub fn encode<T: Serialize>(packet: &T) -> Vec<u8> {
    serde_json::to_vec(packet).expect("packets have string keys only")
}

/// Parses one packet; the error names what is wrong with it.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure {
        step: format!("bad packet: {error}"),
        path: String::new(),
        errno: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_the_wire_and_unknown_fields_are_ignored() {
        for call in [
            Call::Hello,
            Call::Exec { exec: "a".into() },
            Call::Attach { stdin: true, stdout: false, stderr: true },
            Call::Signal { exec: None, signal: 15 },
            Call::Resize { width: 80, height: 24 },
            Call::CloseStdin,
            Call::ReopenLog,
        ] {
            let request = Request { id: 7, call };
            let mut value: serde_json::Value = decode(&encode(&request)).unwrap();
            value["later"] = true.into();
            assert_eq!(decode::<Request>(&encode(&value)).unwrap(), request);
        }
        assert!(decode::<Request>(br#"{"id":1,"call":"dance"}"#).unwrap_err().step.contains("dance"));
    }
}
