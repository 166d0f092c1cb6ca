//! Packets on `shim.sock` (SOCK_SEQPACKET): each is one JSON value of at most 4 KiB. From daemon to
//! shim descriptors come with it (SCM_RIGHTS, unix(7)).
//!
//! Several daemons may be connected, one after the other or at once. End-of-file means that the
//! shim is gone: `exit.json` is there to read, unless it was killed.
//!
//! How these types may change is said in the documentation of this crate.

use serde::{Deserialize, Serialize};

use crate::record::{Failure, Started};

/// The longest packet, in bytes. Anything longer is sent as a descriptor of a file.
pub const MAX_PACKET: usize = 4096;

/// The step of an exec's failure if the container has ended meanwhile, whatever the error was that
/// this has caused.
pub const ENDED: &str = "the container has ended";

/// Daemon to shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon, and repeated in the reply.
    pub id: u64,
    pub call: Call,
}

/// What the daemon asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Which versions the shim speaks, and what it keeps.
    Hello,
    /// Run one more process. Descriptors: a file in memory, as
    /// `ExecRequest::encode` writes it,
    /// which a full disk cannot prevent; then stdin, stdout and stderr, or with a tty one, the
    /// pty's slave end.
    Exec {
        /// Letters and digits, chosen by the daemon; unique among the execs that run.
        exec: String,
    },
    /// Join the streams of the first process. Descriptors: those of stdin, stdout and stderr that
    /// are true, in this order.
    Attach { stdin: bool, stdout: bool, stderr: bool },
    /// Send a signal to the first process, or to an exec. SIGKILL reaches all descendants of an
    /// exec as well.
    Signal { exec: Option<String>, signal: i32 },
    /// Set the size of the container's own terminal, in characters.
    Resize { width: u16, height: u16 },
    /// Close the standard input of the first process.
    CloseStdin,
    /// Go on in a new log file: the old one was renamed.
    ReopenLog,
}

/// Shim to daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packet {
    /// The answer to the request with this id.
    Reply { id: u64, result: Result<Response, Failure> },
    /// An exec of this connection has ended. `code` is as `End::code` has it.
    ExecExited { exec: String, code: i32 },
}

/// The answer to a `Call`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Hello {
        /// `version::VERSION` of the shim.
        version: u32,
        /// `version::OLDEST` of the shim. One that does not say it speaks only its own version.
        #[serde(default)]
        oldest: Option<u32>,
        /// What `started.json` says, for a daemon that does not find it. Of the groups there are as
        /// many as the packet has room for.
        #[serde(default)]
        started: Option<Started>,
    },
    /// The exec runs its program as this process.
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

/// The id of a request of which nothing else is understood: a newer daemon that asks for too much
/// gets a reply. 0, which no daemon chooses, if there is none.
pub fn request_id(bytes: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    serde_json::from_slice(bytes).map_or(0, |Numbered { id }| id)
}

/// Parses one packet.
///
/// # Errors
/// Names what is wrong with it.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::of_node(format!("bad packet: {error}")))
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
    }

    #[test]
    fn a_call_that_is_not_known_is_refused_by_its_name_and_under_its_id() {
        let unknown = br#"{"id":9,"call":{"dance":{"partner":"a"}}}"#;
        assert!(decode::<Request>(unknown).unwrap_err().step.contains("dance"));
        assert_eq!(request_id(unknown), 9);
        assert_eq!(request_id(b"no packet at all"), 0);
    }
}
