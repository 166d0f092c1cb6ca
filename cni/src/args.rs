//! What a call says besides its configuration: the environment of a CNI plugin (SPEC.md, section
//! 2, "Parameters").

use std::env;

use berth_cni::{Attachment, Error, code, is_identifier};

/// A call, as its environment describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args {
    /// `CNI_COMMAND`: ADD, DEL, CHECK, STATUS, GC, or one of `BERTH_`.
    pub command: String,
    /// The whole of standard input, which an IPAM plugin that this one calls reads too.
    pub stdin: String,
    pub container_id: String,
    /// Path of the pod's network namespace; a DEL may come without one.
    pub netns: Option<String>,
    /// The interface's name inside the pod.
    pub ifname: String,
    /// `IP=` of CNI_ARGS: the addresses that the interface must have, separated by commas.
    pub requested_ips: Option<String>,
    /// `MAC=` of CNI_ARGS: the MAC address that the interface must have.
    pub mac: Option<String>,
    /// The runtime deletes the namespace right after this DEL (`BERTH_NETNS_ENDS=1` in CNI_ARGS,
    /// which berthd sets).
    pub netns_ends: bool,
}

impl Args {
    /// A call about the network as a whole and no container.
    pub(crate) fn of_network(command: &str, stdin: String) -> Self {
        Self { command: command.to_owned(), stdin, ..Self::default() }
    }

    /// Adds what a command about a container finds in its environment.
    ///
    /// # Errors
    /// A required variable is missing or is not what it must be (code 4).
    pub(crate) fn with_container(self, needs_netns: bool) -> Result<Self, Error> {
        let args = Self {
            container_id: required("CNI_CONTAINERID")?,
            netns: variable("CNI_NETNS"),
            ifname: required("CNI_IFNAME")?,
            requested_ips: cni_argument("IP"),
            mac: cni_argument("MAC"),
            netns_ends: cni_argument("BERTH_NETNS_ENDS").is_some_and(|value| value == "1"),
            ..self
        };
        // Id and interface name end up in the comment of an nftables element, which has room for
        // 255 bytes. The name of the network, the third part, is bounded by the configuration.
        if !is_identifier(&args.container_id) || args.container_id.len() > 128 {
            return Err(invalid(format!("bad CNI_CONTAINERID {}", args.container_id)));
        }
        // As dev_valid_name() of the kernel has it: IFNAMSIZ - 1 bytes at most, without slashes,
        // colons and white space.
        let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if args.ifname.len() > 15 || args.ifname.contains(is_bad) {
            return Err(invalid(format!("bad CNI_IFNAME {}", args.ifname)));
        }
        if needs_netns && args.netns.is_none() {
            return Err(missing("CNI_NETNS"));
        }
        Ok(args)
    }

    pub(crate) fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }
}

/// A variable of the environment. An empty one counts as absent: libcni sets all of them always.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn required(name: &str) -> Result<String, Error> {
    variable(name).ok_or_else(|| missing(name))
}

/// The value of a key in CNI_ARGS, which is `KEY=VALUE;KEY=VALUE`.
fn cni_argument(key: &str) -> Option<String> {
    let all = variable("CNI_ARGS")?;
    let mut pairs = all.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
}

fn missing(name: &str) -> Error {
    invalid(format!("{name} is not set"))
}

fn invalid(msg: String) -> Error {
    Error::new(code::INVALID_ENVIRONMENT, msg)
}
