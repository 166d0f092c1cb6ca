//! The network alone: ADD and DEL of a bridge with a port of the host, by our plugin and by upstream's chain of three.

use std::{io::Write, path::PathBuf, process::Stdio, time::Instant};

use berth_tests::{Machine, binary, tools};
use serde_json::{Value, json};

use crate::{Outcome, median};

/// So many pods at last: what one costs then is compared with the first.
const MANY: usize = 500;

/// One way to have a bridge with ports.
struct Network {
    name: &'static str,
    machine: Machine,
    /// Programs and configurations, in the order of ADD.
    chain: Vec<(PathBuf, Value)>,
}

/// Lines for people. `alone`: without upstream's.
pub(crate) fn compare(rounds: usize, alone: bool) -> Outcome<Vec<String>> {
    let mut networks = vec![own()];
    if !alone {
        networks.push(upstream());
    }
    let mut times = vec![(Vec::new(), Vec::new()); networks.len()];
    for round in 0..=rounds {
        for (network, (adds, deletes)) in networks.iter().zip(&mut times) {
            let (add, result) = network.add(round)?;
            let delete = network.delete(round, &result)?;
            network.machine.output("ip", &["netns", "delete", &name(round)]);
            // The first makes the bridge and the rules.
            if round > 0 {
                adds.push(add);
                deletes.push(delete);
            }
        }
    }
    let mut lines = vec!["\nbridge with a port of the host, plugins alone, ms".to_owned()];
    let of = |index: usize| (median(&times[index].0), median(&times[index].1));
    for (index, network) in networks.iter().enumerate() {
        let ((add, delete), (own_add, own_delete)) = (of(index), of(0));
        let ratio =
            if index > 0 { format!(": 1/{:.1}, 1/{:.1}", add / own_add, delete / own_delete) } else { String::new() };
        lines.push(format!("  {:<12} ADD {add:.2}, DEL {delete:.2}{ratio}", network.name));
    }
    let (first, last) = grow(&networks[0])?;
    lines.push(format!("  {:<12} ADD of the first 20 pods {first:.2}, up to pod {MANY} {last:.2}", networks[0].name));
    Ok(lines)
}

/// Medians of the first and the last twenty of many that stay.
fn grow(network: &Network) -> Outcome<(f64, f64)> {
    let adds = (1000..1000 + MANY).map(|number| Ok(network.add(number)?.0)).collect::<Outcome<Vec<f64>>>()?;
    Ok((median(&adds[..20]), median(&adds[MANY - 20..])))
}

/// Of a pod and its namespace.
fn name(number: usize) -> String {
    format!("pod{number}")
}

fn ipam(machine: &Machine) -> Value {
    let ranges = json!([[{ "subnet": "10.88.0.0/16" }]]);
    json!({ "type": "host-local", "ranges": ranges, "dataDir": machine.path("ipam") })
}

fn own() -> Network {
    let machine = Machine::new();
    let conf = json!({ "type": "berth-bridge", "isDefaultGateway": true, "ipMasq": true, "ipam": ipam(&machine) });
    Network { name: "berth", chain: vec![(binary("berth-bridge"), conf)], machine }
}

fn upstream() -> Network {
    let machine = Machine::new();
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
        "hairpinMode": true, "ipam": ipam(&machine) });
    let portmap = json!({ "type": "portmap", "backend": "nftables" });
    Network {
        name: "upstream",
        chain: vec![(tools().join("bridge"), bridge), (tools().join("portmap"), portmap)],
        machine,
    }
}

impl Network {
    /// Milliseconds, and the last result. The namespace is there before.
    fn add(&self, number: usize) -> Outcome<(f64, Value)> {
        self.machine.output("ip", &["netns", "add", &name(number)]);
        let begun = Instant::now();
        let mut result = Value::Null;
        for plugin in &self.chain {
            result = self.call("ADD", plugin, number, &result)?;
        }
        Ok((begun.elapsed().as_secs_f64() * 1000.0, result))
    }

    fn delete(&self, number: usize, result: &Value) -> Outcome<f64> {
        let begun = Instant::now();
        for plugin in self.chain.iter().rev() {
            self.call("DEL", plugin, number, result)?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1000.0)
    }

    fn call(&self, command: &str, plugin: &(PathBuf, Value), number: usize, result: &Value) -> Outcome<Value> {
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
        child.stdin.take().ok_or("piped")?.write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{} {command}: {}", program.display(), String::from_utf8_lossy(&output.stdout)).into());
        }
        Ok(if command == "ADD" { serde_json::from_slice(&output.stdout)? } else { Value::Null })
    }
}
