//! `berth-bridge`: a CNI 1.1.0 plugin that attaches pods to a Linux bridge, with addresses,
//! masquerading, ports of the host and bandwidth limits built in.

mod args;
mod bandwidth;
mod bridge;
mod conf;
mod ipam;
mod isolation;
mod lead;
mod macspoof;
mod names;
mod netfilter;
mod netlink;
mod network;
mod nft;
mod portmap;
mod steps;
mod sysctl;

use std::{
    env,
    io::{Read, Write},
    process::ExitCode,
};

use berth_cni::{Error, VERSION, code};
use serde_json::{Value, json};

use crate::{
    args::Args,
    steps::{At, begin},
};

const USAGE: &str = "\
berth-bridge is a CNI plugin. A container runtime runs it, with the command in CNI_COMMAND and the
configuration on standard input.
Commands: ADD, DEL, CHECK, STATUS, GC, VERSION (CNI 0.3.0 to 1.1.0); BERTH_UP and BERTH_DOWN make
and remove what all containers of a network have together; BERTH_LEAD and BERTH_YIELD give an attached
container its default route and ports, and take them away; BERTH_TRY makes the rules of nftables where
nobody sees them, and says what the kernel lacks.

It is the upstream plugins bridge, host-local, portmap and bandwidth in one. A network for pods,
with ports of the host:
  { \"cniVersion\": \"1.1.0\", \"name\": \"pods\", \"plugins\": [ {
      \"type\": \"berth-bridge\", \"isDefaultGateway\": true, \"ipMasq\": true,
      \"capabilities\": { \"portMappings\": true, \"bandwidth\": true },
      \"ipam\": { \"type\": \"host-local\",
        \"ranges\": [[{ \"subnet\": \"10.88.0.0/16\" }], [{ \"subnet\": \"fd00:88::/64\" }]] } } ] }

example: CNI_COMMAND=VERSION berth-bridge < /dev/null
";

/// Versions of the specification that are served. Of what this plugin prints they differ in
/// `ips[].version` only, which results before 1.0.0 have.
const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A configuration is read up to this many bytes; a larger one is then not valid JSON.
const MAX_CONF: u64 = 1 << 20;

fn main() -> ExitCode {
    #[cfg(feature = "faults")]
    steps::allow_faults();
    let Ok(command) = env::var("CNI_COMMAND") else {
        // Somebody tries it on the command line. Where even that cannot be printed, nothing can.
        let _ = print(USAGE);
        return ExitCode::from(2);
    };
    // One thread: setns(2) moves the calling thread only, and everything here runs on it, so that
    // entering the pod's namespace for a moment and coming back is safe.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .map_err(|error| Error::new(code::IO, format!("start: {error}")))
        .and_then(|runtime| runtime.block_on(run(&command)));
    // Errors of printing are ignored: a runtime that closed the pipe has given up on this call.
    match result {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(response) => {
            let _ = print(&response.to_string());
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

/// One call: the value to print, or null for a command that prints nothing when it succeeds.
async fn run(command: &str) -> Result<Value, Error> {
    if command == "VERSION" {
        return Ok(json!({"cniVersion": VERSION, "supportedVersions": SUPPORTED}));
    }
    if command == "BERTH_TRY" {
        return try_rules().map(|()| Value::Null);
    }
    let stdin = read_stdin()?;
    let conf = conf::parse(&stdin)?;
    if !SUPPORTED.contains(&conf.cni_version.as_str()) {
        let msg = format!("cniVersion {} is not one of {}", conf.cni_version, SUPPORTED.join(", "));
        return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
    }
    // STATUS and GC are about the network: they come without a container.
    let args = Args::of_network(command, stdin);
    match command {
        "ADD" => {
            let args = args.with_container(true)?;
            let success = bridge::add(&conf, &args).await?;
            begin(At::AddResult)?;
            if print(&versioned(json!(success), &conf.cni_version).to_string()).is_err() {
                // The runtime is gone. It may have called DEL while this ADD was still at work, and
                // nobody will call it again, so the pod is detached here.
                bridge::del(&conf, &Args { netns_ends: false, ..args }).await?;
            }
            Ok(Value::Null)
        }
        "DEL" => bridge::del(&conf, &args.with_container(false)?).await.map(|()| Value::Null),
        "CHECK" => bridge::check(&conf, &args.with_container(true)?).await.map(|()| Value::Null),
        "STATUS" => ipam::status(&conf, &args).map(|()| Value::Null),
        "GC" => bridge::collect_garbage(&conf, &args).await.map(|()| Value::Null),
        "BERTH_LEAD" => lead::lead(&conf, &args.with_container(true)?).await.map(|()| Value::Null),
        "BERTH_YIELD" => {
            lead::surrender(&conf, &args.with_container(true)?).await.map(|()| Value::Null)
        }
        "BERTH_UP" => network::up(&conf).await.map(|()| Value::Null),
        "BERTH_DOWN" => network::down(&conf).await.map(|()| Value::Null),
        other => Err(Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND {other}"))),
    }
}

/// Makes all rules of the node in a network namespace that ends with this process.
///
/// # Errors
/// The kernel lacks a part of nftables, or this is not root.
fn try_rules() -> Result<(), Error> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(|errno| nft::rules::failed("make a network namespace", errno as i32))?;
    nft::rules::try_all()
}

fn read_stdin() -> Result<String, Error> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_CONF).read_to_string(&mut text);
    read.map_err(|error| Error::new(code::IO, format!("read the configuration: {error}")))?;
    Ok(text)
}

/// The result in the form of the version that was asked for: those before 1.0.0 have the IP version
/// beside each address.
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
