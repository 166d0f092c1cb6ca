//! `berth-bridge`: pods on a Linux bridge, with addresses, masquerading, ports of the host and limits of bandwidth built in. A CNI
//! 1.1.0 plugin.

mod bridge;
mod conf;
mod guard;
mod ipam;
mod link;
mod netns;
mod nft;
mod portmap;
mod reservations;
mod rules;
mod shaper;

use std::{
    env,
    io::{Read, Write},
    process::ExitCode,
};

use berth_cni::{Error, VERSION, code, is_identifier};
use serde_json::{Value, json};

use crate::conf::Conf;

const USAGE: &str = "\
berth-bridge is a CNI plugin: it takes its orders from CNI_COMMAND and its configuration from standard input.
Commands: ADD, DEL, CHECK, STATUS, GC, VERSION (CNI 0.3.0 to 1.1.0).

It is the upstream plugins bridge, host-local, portmap, bandwidth in one: a network for pods, with ports of the host, is
  { \"cniVersion\": \"1.1.0\", \"name\": \"pods\", \"plugins\": [ {
      \"type\": \"berth-bridge\", \"isDefaultGateway\": true, \"ipMasq\": true,
      \"capabilities\": { \"portMappings\": true, \"bandwidth\": true },
      \"ipam\": { \"type\": \"host-local\", \"ranges\": [[{ \"subnet\": \"10.88.0.0/16\" }], [{ \"subnet\": \"fd00:88::/64\" }]] } } ] }

example: CNI_COMMAND=VERSION berth-bridge < /dev/null
";

/// Versions whose results differ in nothing that this plugin prints, but for `ips[].version` before 1.0.0.
const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Larger configurations are not read to the end.
const MAX_CONF: u64 = 1 << 20;

/// A call: its environment, and its input for a plugin that is asked in turn.
#[derive(Clone, Debug, Default)]
struct Args {
    command: String,
    stdin: String,
    container_id: String,
    netns: Option<String>,
    ifname: String,
    /// `IP=` and `MAC=` of CNI_ARGS: what the interface is to have.
    wanted: Option<String>,
    mac: Option<String>,
    /// The runtime deletes the namespace right after this DEL (`BERTH_NETNS_ENDS=1` in CNI_ARGS).
    netns_ends: bool,
}

fn main() -> ExitCode {
    let Ok(command) = env::var("CNI_COMMAND") else {
        let _ = print(USAGE);
        return ExitCode::from(2);
    };
    // Everything is one conversation with the kernel: no second thread, so that entering a namespace and leaving it is safe.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .map_err(|error| Error::new(code::IO, format!("start: {error}")))
        .and_then(|runtime| runtime.block_on(run(&command)));
    // A runtime that closed the pipe has given up already.
    match result {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(answer) => {
            let _ = print(&answer.to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = print(&json!(error).to_string());
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

async fn run(command: &str) -> Result<Value, Error> {
    if command == "VERSION" {
        return Ok(json!({"cniVersion": VERSION, "supportedVersions": SUPPORTED}));
    }
    let stdin = read_stdin()?;
    let conf = Conf::parse(&stdin)?;
    if !SUPPORTED.contains(&conf.cni_version.as_str()) {
        let msg = format!("cniVersion {} is not one of {}", conf.cni_version, SUPPORTED.join(", "));
        return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
    }
    // STATUS and GC are about the network and not about a container.
    let node = Args { command: command.to_owned(), stdin, ..Args::default() };
    match command {
        "ADD" => {
            let args = node.read(true)?;
            let success = bridge::add(&conf, &args).await?;
            if print(&versioned(json!(success), &conf.cni_version).to_string()).is_err() {
                // The runtime is gone, and may have undone this before it was done.
                bridge::del(&conf, &Args { netns_ends: false, ..args }).await?;
            }
            Ok(Value::Null)
        }
        "DEL" => bridge::del(&conf, &node.read(false)?).await.map(|()| Value::Null),
        "CHECK" => bridge::check(&conf, &node.read(true)?).await.map(|()| Value::Null),
        "STATUS" => ipam::status(&conf, &node).map(|()| Value::Null),
        "GC" => bridge::collect_garbage(&conf, &node).await.map(|()| Value::Null),
        other => Err(Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND {other}"))),
    }
}

fn read_stdin() -> Result<String, Error> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_CONF).read_to_string(&mut text);
    read.map_err(|error| Error::new(code::IO, format!("read the configuration: {error}")))?;
    Ok(text)
}

/// Versions before 1.0.0 want the IP version beside each address.
fn versioned(mut success: Value, version: &str) -> Value {
    success["cniVersion"] = version.into();
    if version.starts_with("0.") {
        for ip in success["ips"].as_array_mut().into_iter().flatten() {
            let is_v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
            ip["version"] = if is_v6 { "6" } else { "4" }.into();
        }
    }
    success
}

impl Args {
    /// With what a command about a container finds in its environment.
    fn read(self, needs_netns: bool) -> Result<Self, Error> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let missing = |name: &str| Error::new(code::INVALID_ENVIRONMENT, format!("{name} is not set"));
        let cni_args = variable("CNI_ARGS").unwrap_or_default();
        let argument = |name: &str| {
            let mut pairs = cni_args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let args = Self {
            container_id: variable("CNI_CONTAINERID").ok_or_else(|| missing("CNI_CONTAINERID"))?,
            netns: variable("CNI_NETNS"),
            ifname: variable("CNI_IFNAME").ok_or_else(|| missing("CNI_IFNAME"))?,
            wanted: argument("IP"),
            mac: argument("MAC"),
            netns_ends: argument("BERTH_NETNS_ENDS").is_some_and(|value| value == "1"),
            ..self
        };
        // Both are part of a rule's comment, which has 255 bytes.
        if !is_identifier(&args.container_id) || args.container_id.len() > 128 {
            return Err(Error::new(code::INVALID_ENVIRONMENT, format!("bad CNI_CONTAINERID {}", args.container_id)));
        }
        if args.ifname.len() > 15 || args.ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            return Err(Error::new(code::INVALID_ENVIRONMENT, format!("bad CNI_IFNAME {}", args.ifname)));
        }
        if needs_netns && args.netns.is_none() {
            return Err(missing("CNI_NETNS"));
        }
        Ok(args)
    }
}
