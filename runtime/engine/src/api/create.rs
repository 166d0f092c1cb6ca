//! The body of `POST /containers/create`.

use std::collections::BTreeMap;

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{host_config::HostConfig, json};

/// What `docker run` asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CreateBody {
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    pub networking_config: NetworkingConfig,
}

/// The part that an image can set as well.
pub(crate) use berth_dockerfile::Config as ContainerConfig;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct NetworkingConfig {
    pub endpoints_config: BTreeMap<String, Option<EndpointSettings>>,
}

/// What a container wants of a network, and what it got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointSettings {
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<Value>,
    #[serde(rename = "Links")]
    pub links: Option<Vec<String>>,
    #[serde(rename = "Aliases")]
    pub aliases: Option<Vec<String>>,
    #[serde(rename = "MacAddress")]
    pub mac_address: Option<String>,
    #[serde(rename = "DriverOpts")]
    pub driver_opts: Option<BTreeMap<String, String>>,
    #[serde(rename = "GwPriority")]
    pub gw_priority: Option<i64>,
}

/// The struct as Go's errors name it.
const PLACE: &str = "CreateRequest";

impl CreateBody {
    /// Parses a body of which only the container's own part is wanted. `None` if it says nothing of
    /// that.
    ///
    /// # Errors
    /// As `parse`.
    pub(crate) fn config_of(body: &[u8]) -> Result<Option<ContainerConfig>> {
        match body.iter().all(u8::is_ascii_whitespace) {
            true => Ok(None),
            false => config(&mut json::object(body, "container.CreateRequest")?),
        }
    }

    /// Parses a body.
    ///
    /// # Errors
    /// `InvalidArgument`, in dockerd's words, for what is no JSON, has a field of the wrong type, or
    /// says nothing of the container itself.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        let mut object = json::object(body, "container.CreateRequest")?;
        let mut nested = |name: &str| match json::take(&mut object, name) {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let mut host_config = nested("HostConfig");
        let mut networking_config = nested("NetworkingConfig");
        let config = config(&mut object)?.ok_or_else(|| {
            Error::invalid("config cannot be empty in order to create a container")
        })?;
        Ok(Self {
            config,
            host_config: json::fields(&mut host_config, &format!("{PLACE}.HostConfig"))?,
            networking_config: json::fields(
                &mut networking_config,
                &format!("{PLACE}.NetworkingConfig"),
            )?,
        })
    }
}

/// Takes the container's own fields. `None` if there are none.
fn config(object: &mut Map<String, Value>) -> Result<Option<ContainerConfig>> {
    let own = json::names::<ContainerConfig>();
    match object.keys().any(|key| own.iter().any(|name| key.eq_ignore_ascii_case(name))) {
        true => json::fields(object, &format!("{PLACE}.Config")).map(Some),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_as_go_reads_them() {
        let body = br#"{"image":"b","Env":null,"Cmd":"ls -l","HOSTCONFIG":{"memory":5,
            "Binds":null,"LogConfig":{"Type":null},"PortBindings":{"80/tcp":null},
            "Mounts":[{"Type":"bind","Source":null}]},"Nope":1}"#;
        let body = CreateBody::parse(body).unwrap();
        assert_eq!((body.config.image.as_str(), body.host_config.memory), ("b", 5));
        assert_eq!(body.config.cmd.unwrap(), ["ls -l"]);
        assert!(body.host_config.port_bindings.unwrap()["80/tcp"].is_none());
    }

    #[test]
    fn errors_are_in_the_words_of_go() {
        for (body, message) in [
            ("", "invalid JSON: got EOF while reading request body"),
            ("{", "invalid JSON: unexpected EOF"),
            ("{}{}", "unexpected content after JSON"),
            ("null", "config cannot be empty in order to create a container"),
            (r#"{"HostConfig":{}}"#, "config cannot be empty in order to create a container"),
            (
                "[]",
                "invalid JSON: json: cannot unmarshal array into Go value of type \
                 container.CreateRequest",
            ),
            (
                r#"{"Image":5}"#,
                "invalid JSON: json: cannot unmarshal number into Go struct field \
                 CreateRequest.Config.Image of type string",
            ),
            (
                r#"{"Image":"b","Env":"x"}"#,
                "invalid JSON: json: cannot unmarshal string into Go struct field \
                 CreateRequest.Config.Env of type []string",
            ),
        ] {
            assert_eq!(CreateBody::parse(body.as_bytes()).unwrap_err().message, message, "{body}");
        }
    }
}
