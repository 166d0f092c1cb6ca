//! What Portainer asks when it shows a machine and when its buttons are pressed, in the order and in the
//! words in which it asks: in the version 1.41, with fields that say nothing.

use serde_json::{Value, json};

use crate::ready;

/// What its form for a new container sends.
fn form(image: &str) -> Value {
    json!({
        "name": "web", "Image": image, "Cmd": ["sh"], "Entrypoint": null, "Env": [], "MacAddress": "",
        "OpenStdin": true, "Tty": true, "Labels": {}, "Volumes": { "/data": {} },
        "ExposedPorts": { "80/tcp": {} },
        "HostConfig": {
            "RestartPolicy": { "Name": "always" }, "Binds": ["pages:/data"], "NetworkMode": "front",
            "PortBindings": { "80/tcp": [{ "HostIp": "", "HostPort": "" }] },
            "PublishAllPorts": false, "AutoRemove": false, "Privileged": false, "Init": false,
            "Runtime": null, "ExtraHosts": [], "Devices": [], "DeviceRequests": [],
            "CapAdd": ["AUDIT_WRITE"], "CapDrop": [], "Sysctls": {}, "Dns": [],
            "LogConfig": { "Type": "", "Config": {} }, "ShmSize": 67_108_864, "Memory": 0,
            "MemoryReservation": 0, "NanoCpus": 0,
        },
        "NetworkingConfig": { "EndpointsConfig": {
            "front": { "IPAMConfig": { "IPv4Address": "", "IPv6Address": "" } },
        } },
    })
}

/// A request, the status that dockerd answers, and fields that Portainer reads, as JSON pointers.
type Call = (&'static str, &'static str, Value, u16, &'static [&'static str]);

/// A container is made, and shown.
fn shown(image: &str) -> Vec<Call> {
    let nothing = Value::Null;
    let network = json!({
        "Name": "front", "Driver": "bridge", "CheckDuplicate": true, "Internal": false,
        "Attachable": false, "EnableIPv6": false, "Options": {}, "Labels": {},
        "IPAM": { "Driver": "default", "Config": [] },
    });
    vec![
        ("GET", "/swarm", nothing.clone(), 503, &["/message"]),
        ("GET", "/services", nothing.clone(), 503, &["/message"]),
        ("GET", "/plugins", nothing.clone(), 200, &[]),
        (
            "POST",
            "/volumes/create",
            json!({ "Name": "pages", "Driver": "local", "DriverOpts": {}, "Labels": {} }),
            201,
            &["/Name", "/Mountpoint", "/Scope", "/CreatedAt"],
        ),
        ("POST", "/networks/create", network, 201, &["/Id", "/Warning"]),
        ("POST", "/containers/create?name=web", form(image), 201, &["/Id", "/Warnings"]),
        ("POST", "/containers/web/start", json!({}), 204, &[]),
        (
            "GET",
            "/containers/json?all=1",
            nothing.clone(),
            200,
            &["/0/Id", "/0/State", "/0/Status", "/0/Ports/0/PublicPort", "/0/Mounts/0/Name"],
        ),
        (
            "GET",
            "/images/json?all=0",
            nothing.clone(),
            200,
            &["/0/Id", "/0/RepoTags/0", "/0/Size", "/0/VirtualSize", "/0/Created"],
        ),
        ("GET", "/volumes", nothing.clone(), 200, &["/Volumes/0/Name", "/Warnings"]),
        ("GET", "/networks", nothing.clone(), 200, &["/0/Id", "/0/IPAM/Driver", "/0/Scope"]),
        (
            "GET",
            "/containers/web/json",
            nothing.clone(),
            200,
            &[
                "/Id",
                "/State/StartedAt",
                "/HostConfig/RestartPolicy/Name",
                "/Config/Env",
                "/NetworkSettings/Networks/front/IPAddress",
                "/NetworkSettings/Networks/front/Gateway",
                "/NetworkSettings/Ports/80~1tcp/0/HostPort",
                "/Mounts/0/Name",
            ],
        ),
        (
            "GET",
            "/containers/web/stats?stream=false",
            nothing.clone(),
            200,
            &[
                "/read",
                "/memory_stats/usage",
                "/cpu_stats/cpu_usage/total_usage",
                "/cpu_stats/system_cpu_usage",
                "/cpu_stats/online_cpus",
                "/precpu_stats/cpu_usage/total_usage",
                "/networks/eth0/rx_bytes",
            ],
        ),
        ("GET", "/containers/web/top", nothing.clone(), 200, &["/Titles/0", "/Processes/0/1"]),
        (
            "GET",
            "/containers/web/logs?stderr=1&stdout=1&tail=100&timestamps=0",
            nothing.clone(),
            200,
            &[],
        ),
        ("GET", "/events?since=1&until=2", nothing.clone(), 200, &[]),
        (
            "GET",
            "/system/df",
            nothing.clone(),
            200,
            &[
                "/LayersSize",
                "/Images/0/VirtualSize",
                "/Containers/0/SizeRootFs",
                "/Volumes/0/Name",
            ],
        ),
        ("GET", "/networks/front", nothing.clone(), 200, &["/Containers", "/IPAM/Config/0/Subnet"]),
    ]
}

/// Its buttons are pressed, until nothing is left.
fn pressed() -> Vec<Call> {
    let nothing = Value::Null;
    let member = json!({ "Container": "web2", "Force": false });
    vec![
        (
            "POST",
            "/containers/web/exec",
            json!({ "id": "web", "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
                "Tty": true, "Cmd": ["sh"], "User": "" }),
            201,
            &["/Id"],
        ),
        (
            "POST",
            "/containers/web/update",
            json!({ "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 } }),
            200,
            &["/Warnings"],
        ),
        ("POST", "/containers/web/rename?name=web2", nothing.clone(), 204, &[]),
        ("POST", "/networks/bridge/connect", member.clone(), 200, &[]),
        ("POST", "/networks/bridge/disconnect", member, 200, &[]),
        ("POST", "/containers/web2/kill", nothing.clone(), 204, &[]),
        // It ends before the next one is answered, or is refused as one that is not running.
        ("POST", "/containers/web2/wait", nothing.clone(), 200, &["/StatusCode"]),
        ("POST", "/containers/web2/pause", nothing.clone(), 409, &["/message"]),
        ("POST", "/containers/web2/start", nothing.clone(), 204, &[]),
        ("POST", "/containers/web2/start", nothing.clone(), 304, &[]),
        ("DELETE", "/volumes/pages?force=false", nothing.clone(), 409, &["/message"]),
        ("DELETE", "/networks/front", nothing.clone(), 403, &["/message"]),
        ("DELETE", "/containers/web2?v=0&force=true", nothing.clone(), 204, &[]),
        ("DELETE", "/containers/web2?v=0&force=true", nothing.clone(), 404, &["/message"]),
        ("DELETE", "/volumes/pages?force=false", nothing.clone(), 204, &[]),
        ("DELETE", "/networks/front", nothing.clone(), 204, &[]),
        ("DELETE", "/images/nothere?force=false", nothing, 404, &["/message"]),
    ]
}

#[tokio::test]
async fn portainers_calls_are_answered_as_dockerd_answers_them() {
    let (machine, _daemon, engine, image) = ready().await;
    for (path, fields) in [
        ("/_ping", &[][..]),
        ("/version", &["/ApiVersion", "/Version"]),
        (
            "/info",
            &["/ID", "/Name", "/NCPU", "/MemTotal", "/Swarm/LocalNodeState", "/Plugins/Volume/0"],
        ),
    ] {
        let answer = engine.get(path).await;
        fields.iter().for_each(|field| assert!(answer.pointer(field).is_some(), "{path} {field}"));
    }
    for (method, path, body, status, fields) in [shown(&image), pressed()].concat() {
        let body = Some(body).filter(|body| !body.is_null());
        let (answered, answer) = engine.request(method, &format!("/v1.41{path}"), body).await;
        assert_eq!(answered, status, "{method} {path}: {answer}");
        for field in fields {
            assert!(answer.pointer(field).is_some(), "{method} {path}: no {field}: {answer}");
        }
        if path == "/containers/web/json" {
            // What its form leaves empty is not shown, so that a copy of the container is the same.
            assert_eq!(answer.pointer("/Config/MacAddress"), None);
            assert_eq!(answer.pointer("/HostConfig/Sysctls"), None);
        }
    }
    machine.assert_clean().await;
}
