//! A network namespace that stands for the host, in which the plugin is called as any CNI runtime
//! does.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    thread,
    time::Duration,
};

use berth_tests::{Machine, binary, has_single_processor};
use serde_json::{Value, json};

pub(crate) const V4: &str = "10.88.0.0/16";

pub(crate) const V6: &str = "fd00:88::/64";

/// A host to which pods are attached.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    pub(crate) conf: Value,
}

impl Host {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        let ipam = json!({
            "type": "host-local",
            "ranges": [[{ "subnet": V4 }], [{ "subnet": V6 }]],
            "dataDir": machine.path("ipam"),
        });
        let conf = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "berth-bridge",
            "isDefaultGateway": true, "ipam": ipam,
        });
        Self { machine, conf }
    }

    /// The configuration with further keys.
    pub(crate) fn with(&self, more: Value) -> Value {
        let mut conf = self.conf.clone();
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// Makes the network namespace of a pod, under the pod's name.
    pub(crate) fn pod(&self, name: &str) {
        self.machine.output("ip", &["netns", "add", name]);
        self.machine.output("ip", &["-n", name, "link", "set", "lo", "up"]);
    }

    pub(crate) fn call(&self, command: &str, id: &str, conf: &Value) -> Result<Value, Value> {
        self.call_with(command, id, &conf.to_string(), &[])
    }

    pub(crate) fn call_with(
        &self,
        command: &str,
        id: &str,
        stdin: &str,
        environment: &[(&str, &str)],
    ) -> Result<Value, Value> {
        let mut child = self
            .machine
            .command(binary("berth-bridge"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", format!("/run/netns/{id}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let answer =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        if output.status.success() { Ok(answer) } else { Err(answer) }
    }

    /// Makes the namespace of a pod and attaches it; returns its addresses.
    pub(crate) fn attach(&self, name: &str, conf: &Value) -> Vec<IpAddr> {
        self.pod(name);
        let result = self.call("ADD", name, conf).unwrap();
        let address = |ip: &Value| {
            ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
        };
        result["ips"].as_array().unwrap().iter().map(address).collect()
    }

    /// Starts a server in a pod that answers each connection with `says`.
    pub(crate) fn serve(&self, pod: &str, port: u16, says: &'static str) {
        let listener = self.machine.in_netns(pod, || TcpListener::bind(("::", port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(says.as_bytes()));
            }
        });
    }

    pub(crate) fn rules(&self) -> String {
        self.machine.output("nft", &["list", "ruleset"])
    }

    pub(crate) fn links(&self) -> Vec<String> {
        let text = self.machine.output("ip", &["-o", "link"]);
        let name =
            |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        text.lines().map(name).filter(|name| !["lo", "berth0"].contains(&name.as_str())).collect()
    }

    pub(crate) fn reserved(&self) -> Vec<String> {
        let entries = fs::read_dir(self.machine.path("ipam/pods")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names
            .filter(|name| !["lock", "boot"].contains(&name.as_str()) && !name.starts_with("last_"))
            .collect()
    }

    /// Asserts that nothing is left of any pod: no link, no address, no element.
    pub(crate) fn assert_empty(&self) {
        assert_eq!((self.links(), self.reserved()), (Vec::new(), Vec::new()));
        assert!(!self.rules().contains("comment"), "{}", self.rules());
    }
}

/// What the server at `address` says; empty when nobody answers in time. Half of the callers expect
/// no answer, so the wait is short where processors are free.
pub(crate) fn ask(address: impl Into<SocketAddr>) -> String {
    let mut answer = String::new();
    let (connecting, reading) = if has_single_processor() { (8000, 20) } else { (800, 2) };
    if let Ok(mut stream) =
        TcpStream::connect_timeout(&address.into(), Duration::from_millis(connecting))
    {
        stream.set_read_timeout(Some(Duration::from_secs(reading))).unwrap();
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

pub(crate) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}
