//! What the daemon says of itself: to Prometheus, and to the dashboard in hack/.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Stdio},
};

use berth_proto::v1;
use berth_tests::{
    Capability, Cri, Engine, Machine, container, engine, eventually, pod, ready_with, skip_without,
};
use serde_json::Value;

const ADDRESS: &str = "127.0.0.1:9325";
const PROMETHEUS: &str = "127.0.0.1:9090";

/// GET from a server on the machine's loopback interface: status, content type and body.
fn get(machine: &Machine, url: &str) -> Option<(u16, String, String)> {
    machine.in_network(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let answer = reqwest::get(url).await.ok()?;
            let kind = answer
                .headers()
                .get("content-type")
                .and_then(|kind| kind.to_str().ok())
                .unwrap_or_default();
            let status = answer.status().as_u16();
            let kind = kind.to_owned();
            Some((status, kind, answer.text().await.ok()?))
        })
    })
}

/// Samples by their names with labels.
fn scrape(machine: &Machine) -> BTreeMap<String, f64> {
    let (status, kind, text) =
        get(machine, &format!("http://{ADDRESS}/metrics")).expect("an answer");
    assert!(status == 200 && kind.starts_with("application/openmetrics-text"), "{status} {kind}");
    assert!(text.ends_with("# EOF\n"));
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.into(), value.parse().unwrap()))
        .collect()
}

/// Something of everything: pods that end well and badly, a pull, an error and a session.
async fn live(machine: &Machine, cri: &Cri, image: &str) {
    let sandbox = cri.run_pod(pod(machine, "seen")).await.unwrap();
    for (name, script) in [("ok", "true"), ("bad", "exit 1")] {
        let id = cri.run(&sandbox, container(name, image, script)).await.unwrap();
        cri.exited(&id).await;
    }
    let id = cri.run(&sandbox, container("stays", image, "exec sleep 1000")).await.unwrap();
    cri.pull("127.0.0.1:1/none:1").await.unwrap_err();
    let exec = v1::ExecRequest {
        container_id: id,
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    cri.runtime.clone().exec(exec).await.unwrap();
    cri.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn the_endpoint_says_what_happened() {
    let (machine, daemon, cri, image) =
        ready_with(&format!("[metrics]\nlisten = \"{ADDRESS}\"\n")).await;
    live(&machine, &cri, &image).await;
    let sandbox = cri.run_pod(pod(&machine, "counted")).await.unwrap();
    let id = cri.create(&sandbox, container("c", &image, "true")).await.unwrap();
    let samples = scrape(&machine);
    let sample =
        |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name} in {samples:#?}"));
    let runtime = "grpc_service=\"runtime.v1.RuntimeService\"";
    let handled = |method: &str, code: &str| {
        sample(&format!(
            "grpc_server_handled_total{{{runtime},grpc_method=\"{method}\",grpc_code=\"{code}\"}}"
        ))
    };
    assert_eq!((handled("RunPodSandbox", "OK"), handled("StartContainer", "OK")), (2.0, 3.0));
    let timed = |method: &str, end: &str| {
        sample(&format!("grpc_server_handling_seconds_{end}{{{runtime},grpc_method=\"{method}\"}}"))
    };
    assert!(timed("RunPodSandbox", "count") == 2.0 && timed("RunPodSandbox", "sum") > 0.0);
    let step = |operation: &str, step: &str| {
        sample(&format!("berth_step_seconds_count{{operation=\"{operation}\",step=\"{step}\"}}"))
    };
    assert_eq!((step("run_sandbox", "pin"), step("run_sandbox", "network")), (2.0, 2.0));
    assert!(
        ["cgroup", "launch", "connect"].iter().all(|name| step("start_container", name) == 3.0)
    );
    let plugin = |operation: &str| {
        sample(&format!(
            "berth_cni_plugin_seconds_count{{plugin=\"berth-bridge\",operation=\"{operation}\"}}"
        ))
    };
    assert_eq!((plugin("ADD"), plugin("DEL")), (2.0, 1.0));
    assert_eq!(sample("berth_image_pulls_total{result=\"success\"}"), 1.0);
    assert_eq!(sample("berth_image_pulls_total{result=\"failure\"}"), 1.0);
    assert_eq!(sample("berth_image_layers_total{source=\"pulled\"}"), 1.0);
    assert!(sample("berth_image_pull_bytes_total") > 100_000.0);
    assert_eq!(sample("berth_container_ends_total{reason=\"Completed\"}"), 1.0);
    assert_eq!(sample("berth_container_ends_total{reason=\"Error\"}"), 2.0);
    assert_eq!(
        (sample("berth_sandboxes{state=\"ready\"}"), sample("berth_sandboxes{state=\"notready\"}")),
        (1.0, 0.0)
    );
    assert_eq!(sample("berth_containers{state=\"created\"}"), 1.0);
    assert_eq!((sample("berth_images"), sample("berth_network_detachments_pending")), (1.0, 0.0));
    assert_eq!(
        (sample("berth_streaming_urls_pending"), sample("berth_streaming_sessions")),
        (1.0, 0.0)
    );
    assert!(sample("berth_recovery_seconds") > 0.0);
    let kib = |field: &str| {
        let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let rss = sample("process_resident_memory_bytes") / 1024.0;
    assert!((rss / kib("VmRSS:") - 1.0).abs() < 0.2, "{rss}");
    assert!(sample("process_cpu_seconds_total") >= 0.0 && sample("process_open_fds") > 5.0);
    let age =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((age - sample("process_start_time_seconds")).abs() < 120.0);

    // A method that a client has made up does not become a label.
    let service = "/runtime.v1.RuntimeService/CheckpointPod";
    cri.runtime.clone().checkpoint_pod(v1::CheckpointPodRequest::default()).await.unwrap_err();
    let after = scrape(&machine);
    assert!(
        after.keys().any(|name| name.contains("grpc_method=\"unknown\"")),
        "{service}: {after:#?}"
    );
    for (url, status) in [("/", 404), ("/metrics/", 404)] {
        assert_eq!(get(&machine, &format!("http://{ADDRESS}{url}")).unwrap().0, status);
    }
    cri.remove(&id).await.unwrap();
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn nobody_is_told_unless_it_is_configured() {
    let (machine, _daemon, _cri, _image) = ready_with("").await;
    assert!(get(&machine, &format!("http://{ADDRESS}/metrics")).is_none());
}

/// A Prometheus, which is killed when this is dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Prometheus {
    fn start(machine: &Machine) -> Self {
        let config = machine.path("prometheus.yml");
        let job = format!("- job_name: berth\n  static_configs: [{{ targets: ['{ADDRESS}'] }}]\n");
        fs::write(&config, format!("global: {{ scrape_interval: 1s }}\nscrape_configs:\n{job}"))
            .unwrap();
        let log = fs::File::create(machine.path("prometheus.log")).unwrap();
        let child = machine
            .command("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", machine.path("prometheus").display()))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

/// An instant query; returns how many series it has.
fn query(machine: &Machine, expression: &str) -> Result<usize, String> {
    let mut url = reqwest::Url::parse(&format!("http://{PROMETHEUS}/api/v1/query")).unwrap();
    url.query_pairs_mut().append_pair("query", expression);
    let (_, _, text) = get(machine, url.as_str()).ok_or("no answer")?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    match answer["status"].as_str() {
        Some("success") => Ok(answer["data"]["result"].as_array().map_or(0, Vec::len)),
        _ => Err(text),
    }
}

#[tokio::test]
async fn prometheus_scrapes_it_and_every_query_of_the_dashboard_has_an_answer() {
    if skip_without(Capability::Prometheus) {
        return;
    }
    let (machine, _daemon, cri, image) =
        ready_with(&format!("[metrics]\nlisten = \"{ADDRESS}\"\n")).await;
    live(&machine, &cri, &image).await;
    let _prometheus = Prometheus::start(&machine);
    eventually("a scrape", async || query(&machine, "up{job=\"berth\"} == 1") == Ok(1)).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let targets = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut count = 0;
    for target in targets {
        let expression = target["expr"].as_str().unwrap();
        let expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*");
        // A rate needs two scrapes.
        eventually(&expression.clone(), async || {
            let found = query(&machine, &expression)
                .unwrap_or_else(|error| panic!("{expression}: {error}"));
            found > 0
        })
        .await;
        count += 1;
    }
    assert!(count >= 20, "{count}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn requests_of_the_engine_are_counted_by_their_route() {
    let config = format!("{}\n[metrics]\nlisten = \"{ADDRESS}\"\n", engine::config());
    let (machine, _daemon, _cri, _image) = ready_with(&config).await;
    let engine = Engine::of(&machine);
    engine.get("/v1.44/containers/json").await;
    engine.get("/containers/json?all=1").await;
    engine.request("GET", "/containers/nope/json", None).await;
    engine.request("POST", "/x/y", None).await;
    let samples = scrape(&machine);
    for (labels, count) in [
        (r#"method="GET",route="/containers/json",code="200""#, 2.0),
        (r#"method="GET",route="/containers/{name}/json",code="404""#, 1.0),
        (r#"method="POST",route="unknown",code="404""#, 1.0),
    ] {
        let name = format!("berth_engine_requests_total{{{labels}}}");
        assert_eq!(samples.get(&name).copied(), Some(count), "{name} in {samples:#?}");
    }
    let labels = r#"method="GET",route="/containers/json""#;
    let timed = samples[&format!("berth_engine_request_seconds_count{{{labels}}}")];
    assert_eq!(timed, 2.0);
    machine.assert_clean().await;
}
