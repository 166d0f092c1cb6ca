//! The configuration that one run of a plugin reads from its standard input (SPEC.md, section 4,
//! "Deriving execution configuration from plugin configuration").

use berth_cni::ConfList;
use serde_json::{Map, Value, json};

use super::{attachment::Attachment, plugin::Conf};

/// The plugin's own part of the list, with what the runtime adds. `previous` is the result of the
/// plugin before it, or null.
pub(super) fn derive(
    list: &ConfList,
    plugin: &Conf,
    previous: Value,
    attachment: Option<&Attachment>,
) -> Conf {
    let mut conf = plugin.clone();
    // For the runtime only; a plugin sees the arguments instead.
    let declared = conf.remove("capabilities").unwrap_or_default();
    // The two keys that are the list's and that every plugin reads.
    conf.insert("name".to_owned(), json!(list.name));
    conf.insert("cniVersion".to_owned(), json!(list.cni_version));
    // The first plugin of an ADD has none.
    if !previous.is_null() {
        conf.insert("prevResult".to_owned(), previous);
    }
    let arguments: Map<String, Value> = attachment
        .into_iter()
        .flat_map(|attachment| &attachment.capability_args)
        .filter(|(name, _)| declared.get(name).and_then(Value::as_bool) == Some(true))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !arguments.is_empty() {
        conf.insert("runtimeConfig".to_owned(), Value::Object(arguments));
    }
    conf
}

/// Whether the list is of CNI 1.1 or newer, which brought GC and STATUS.
pub(super) fn is_1_1(list: &ConfList) -> bool {
    version(list) >= [1, 1, 0]
}

pub(super) fn version(list: &ConfList) -> [u32; 3] {
    berth_cni::version(&list.cni_version)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{capabilities::Pod, conf::Network},
        *,
    };

    #[test]
    fn plugins_read_what_the_specification_says() {
        let text = json!({
            "cniVersion": "1.0.0",
            "name": "n",
            "plugins": [
                { "type": "a", "x": 1 },
                { "type": "portmap", "capabilities": { "portMappings": true, "dns": false } },
            ],
        })
        .to_string();
        let network = Network { list: ConfList::parse(&text).unwrap(), text };
        let port = berth_cni::PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: berth_cni::Protocol::Tcp,
            host_ip: String::new(),
        };
        let pod = Pod {
            id: "i".into(),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            netns: "/run/netns/x".into(),
            ports: vec![port],
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned())].into(),
            dns: Some(json!({ "servers": ["10.0.0.10"] })),
            cgroup_parent: "/kubepods/pod1".into(),
            bridge: None,
        };
        let ranges = ["10.1.0.0/24".parse().unwrap()];
        let attachment = Attachment::new(&network, &pod, pod.capabilities(&ranges).unwrap());
        let list = attachment.conf_list().unwrap();
        let first = derive(&list, &list.plugins[0], Value::Null, Some(&attachment));
        assert_eq!(
            json!(first),
            json!({ "type": "a", "x": 1, "name": "n", "cniVersion": "1.0.0" })
        );
        let second = derive(&list, &list.plugins[1], json!({ "ips": [] }), Some(&attachment));
        let ports = json!([{ "hostPort": 80, "containerPort": 8080, "protocol": "tcp" }]);
        assert_eq!(second["runtimeConfig"], json!({ "portMappings": ports }));
        assert_eq!(second["prevResult"], json!({ "ips": [] }));
        let all: Vec<&String> = attachment.capability_args.keys().collect();
        let known = [
            "bandwidth",
            "cgroupPath",
            "dns",
            "io.kubernetes.cri.pod-annotations",
            "ipRanges",
            "portMappings",
        ];
        assert_eq!(all, known);
    }
}
