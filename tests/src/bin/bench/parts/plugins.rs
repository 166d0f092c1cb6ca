//! The network alone: ADD and DEL of a bridge with a port of the host, by berth-bridge and by
//! upstream's chain of three plugins.

use std::{
    io::Write,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Machine, binary, tools};
use serde_json::{Value, json};

use super::Findings;
use crate::{
    options::Options,
    report::{BERTH, Key, Part, Unit},
};

/// The number of pods in the end. What the last ones cost is compared with the first.
const MANY: usize = 500;
/// How many of them are the first, and the last.
const ENDS: usize = 20;

/// One way to make a bridge with ports of the host.
struct Network {
    name: &'static str,
    machine: Machine,
    /// Plugins and their configurations, in the order of ADD.
    chain: Vec<(PathBuf, Value)>,
}

pub(super) fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let mut networks = vec![own()];
    // A runtime at a socket has plugins that this cannot see.
    if !options.alone && options.peer.is_none() {
        networks.push(upstream());
    }
    let time = |name| Key::new(Part::Plugins, name, Unit::Milliseconds);
    for round in 0..=options.rounds {
        for network in &networks {
            let (add, result) = network.add(round)?;
            let delete = network.delete(round, &result)?;
            network.machine.output("ip", &["netns", "delete", &name(round)]);
            // The first pod makes the bridge and the rules, and is not counted.
            if round > 0 {
                findings.samples.add_time(&time("CNI ADD, with a host port"), network.name, add);
                findings.samples.add_time(&time("CNI DEL, with a host port"), network.name, delete);
            }
        }
    }
    // Many pods that stay.
    let key = time("CNI ADD, pods that stay");
    for number in 1..=MANY {
        let (add, _) = networks[0].add(MANY + number)?;
        if number <= ENDS {
            findings.samples.add_time(&key.clone().at(ENDS), BERTH, add);
        } else if number > MANY - ENDS {
            findings.samples.add_time(&key.clone().at(MANY), BERTH, add);
        }
    }
    let note = "plugins: berth-bridge alone, and upstream's bridge with host-local and portmap, by nftables";
    findings.notes.insert(Part::Plugins, note.to_owned());
    Ok(())
}

/// A pod and its namespace.
fn name(number: usize) -> String {
    format!("pod{number}")
}

fn ipam(machine: &Machine) -> Value {
    let ranges = json!([[{ "subnet": "10.88.0.0/16" }]]);
    json!({ "type": "host-local", "ranges": ranges, "dataDir": machine.path("ipam") })
}

fn own() -> Network {
    let machine = Machine::new();
    let conf = json!({
        "type": "berth-bridge",
        "isDefaultGateway": true,
        "ipMasq": true,
        "ipam": ipam(&machine),
    });
    Network { name: BERTH, chain: vec![(binary("berth-bridge"), conf)], machine }
}

fn upstream() -> Network {
    let machine = Machine::new();
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true,
        "ipMasqBackend": "nftables",
        "hairpinMode": true, "ipam": ipam(&machine) });
    let portmap = json!({ "type": "portmap", "backend": "nftables" });
    Network {
        name: "containerd",
        chain: vec![(tools().join("bridge"), bridge), (tools().join("portmap"), portmap)],
        machine,
    }
}

impl Network {
    /// Runs all plugins; returns what that takes, and the last result. The namespace is made before.
    fn add(&self, number: usize) -> Result<(Duration, Value)> {
        self.machine.output("ip", &["netns", "add", &name(number)]);
        let begun = Instant::now();
        let mut result = Value::Null;
        for plugin in &self.chain {
            result = self.call("ADD", plugin, number, &result)?;
        }
        Ok((begun.elapsed(), result))
    }

    fn delete(&self, number: usize, result: &Value) -> Result<Duration> {
        let begun = Instant::now();
        for plugin in self.chain.iter().rev() {
            self.call("DEL", plugin, number, result)?;
        }
        Ok(begun.elapsed())
    }

    fn call(
        &self,
        command: &str,
        plugin: &(PathBuf, Value),
        number: usize,
        result: &Value,
    ) -> Result<Value> {
        let (program, mut conf) = plugin.clone();
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!("bench");
        let mapping = json!({ "hostPort": 10000 + number, "containerPort": 80, "protocol": "tcp" });
        conf["runtimeConfig"] = json!({ "portMappings": [mapping] });
        if !result.is_null() {
            conf["prevResult"] = result.clone();
        }
        let pod = name(number);
        let mut child = self
            .machine
            .command(&program)
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", &pod), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", format!("/run/netns/{pod}"))
            .env("CNI_PATH", tools())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("piped")?.write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{} {command}: {answer}", program.display());
        Ok(if command == "ADD" { serde_json::from_slice(&output.stdout)? } else { Value::Null })
    }
}
