//! `berth-bridge`: pods on a Linux bridge, with addresses and masquerading built in. A CNI 1.1.0 plugin.

mod bridge;
mod conf;
mod ipam;
mod link;
mod masquerade;
mod netns;

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
Commands: ADD, DEL, CHECK, STATUS, GC, VERSION (CNI 0.4.0 to 1.1.0).

example: CNI_COMMAND=VERSION berth-bridge < /dev/null
";

/// Versions whose results differ in nothing that this plugin prints, but for `ips[].version` of 0.4.0.
const SUPPORTED: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// Larger configurations are not read to the end.
const MAX_CONF: u64 = 1 << 20;

/// The environment of a call.
#[derive(Debug)]
struct Args {
    container_id: String,
    netns: Option<String>,
    ifname: String,
    /// The runtime deletes the namespace right after this DEL (`BERTH_NETNS_ENDS=1` in CNI_ARGS).
    netns_ends: bool,
}

fn main() -> ExitCode {
    let Ok(command) = env::var("CNI_COMMAND") else {
        print(USAGE);
        return ExitCode::from(2);
    };
    // Everything is one conversation with the kernel: no second thread, so that entering a namespace and leaving it is safe.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let result = runtime
        .map_err(|error| Error::new(code::IO, format!("start: {error}")))
        .and_then(|runtime| runtime.block_on(run(&command)));
    match result {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(answer) => {
            print(&answer.to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            print(&json!(error).to_string());
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) {
    // A runtime that closed the pipe has given up already.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

async fn run(command: &str) -> Result<Value, Error> {
    if command == "VERSION" {
        return Ok(json!({"cniVersion": VERSION, "supportedVersions": SUPPORTED}));
    }
    let conf = read_conf()?;
    match command {
        "ADD" => {
            let success = bridge::add(&conf, &Args::read(true)?).await?;
            Ok(versioned(json!(success), &conf.cni_version))
        }
        "DEL" => bridge::del(&conf, &Args::read(false)?).await.map(|()| Value::Null),
        "CHECK" => bridge::check(&conf, &Args::read(true)?).await.map(|()| Value::Null),
        "STATUS" => bridge::status(&conf).map(|()| Value::Null),
        "GC" => bridge::collect_garbage(&conf).await.map(|()| Value::Null),
        other => Err(Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND {other}"))),
    }
}

fn read_conf() -> Result<Conf, Error> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_CONF).read_to_string(&mut text);
    read.map_err(|error| Error::new(code::IO, format!("read the configuration: {error}")))?;
    let conf: Conf =
        serde_json::from_str(&text).map_err(|error| Error::new(code::DECODE, format!("configuration: {error}")))?;
    if !SUPPORTED.contains(&conf.cni_version.as_str()) {
        let msg = format!("cniVersion {} is not one of {}", conf.cni_version, SUPPORTED.join(", "));
        return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
    }
    conf.check()?;
    Ok(conf)
}

/// 0.4.0 wants the IP version beside each address.
fn versioned(mut success: Value, version: &str) -> Value {
    success["cniVersion"] = version.into();
    if version == "0.4.0" {
        for ip in success["ips"].as_array_mut().into_iter().flatten() {
            ip["version"] = "4".into();
        }
    }
    success
}

impl Args {
    fn read(needs_netns: bool) -> Result<Self, Error> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let missing = |name: &str| Error::new(code::INVALID_ENVIRONMENT, format!("{name} is not set"));
        let args = Self {
            container_id: variable("CNI_CONTAINERID").ok_or_else(|| missing("CNI_CONTAINERID"))?,
            netns: variable("CNI_NETNS"),
            ifname: variable("CNI_IFNAME").ok_or_else(|| missing("CNI_IFNAME"))?,
            netns_ends: variable("CNI_ARGS").is_some_and(|args| args.split(';').any(|arg| arg == "BERTH_NETNS_ENDS=1")),
        };
        if !is_identifier(&args.container_id) {
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
