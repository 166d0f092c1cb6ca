//! A conf list with gaps for the pods' networks, as containerd's `conf_template`: Go's text/template, of which these actions are known:
//! `{{.PodCIDR}}`, `{{range $i, $x := .PodCIDRRanges}}`, the same of `.Routes`, `{{if $i}}`, `{{$x}}`, `{{end}}`.

use ipnet::IpNet;

/// # Errors
/// An action of another kind, or one without its end.
pub(super) fn fill(source: &str, networks: &[IpNet]) -> Result<String, String> {
    let default = |network: &IpNet| if network.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" }.to_owned();
    let lists = Lists {
        networks: networks.iter().map(ToString::to_string).collect(),
        routes: networks.iter().map(default).collect(),
    };
    match block(source, &lists, None)? {
        (text, None) => Ok(text),
        (_, Some(_)) => Err("an {{end}} without a beginning".to_owned()),
    }
}

struct Lists {
    networks: Vec<String>,
    routes: Vec<String>,
}

/// One round of a `range`: the names of its index and its value, and both.
#[derive(Clone, Copy)]
struct Round<'a> {
    names: (&'a str, &'a str),
    index: usize,
    value: &'a str,
}

/// What `source` says up to its `{{end}}`, and what comes after that; `None` when the text ended first.
fn block<'a>(source: &'a str, lists: &Lists, round: Option<Round>) -> Result<(String, Option<&'a str>), String> {
    let mut text = String::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{{") {
        text += before;
        let (action, after) = after.split_once("}}").ok_or("a {{ without its }}")?;
        rest = after;
        match action.split_whitespace().collect::<Vec<_>>()[..] {
            ["end"] => return Ok((text, Some(after))),
            [".PodCIDR"] => text += lists.networks.first().map_or("", String::as_str),
            ["range", index, name, ":=", list] => {
                let values = match list {
                    ".PodCIDRRanges" => &lists.networks,
                    ".Routes" => &lists.routes,
                    _ => return Err(format!("{{{{{action}}}}}: no such list")),
                };
                let names = (index.trim_end_matches(','), name);
                for (index, value) in values.iter().enumerate() {
                    let (filled, behind) = block(after, lists, Some(Round { names, index, value }))?;
                    text += &filled;
                    rest = behind.ok_or_else(|| format!("{{{{{action}}}}} has no {{{{end}}}}"))?;
                }
            }
            ["if", name] => {
                let (filled, behind) = block(after, lists, round)?;
                let round = round.filter(|round| round.names.0 == name);
                // As in Go, a number is true unless it is 0.
                let is_true = round.ok_or_else(|| format!("{{{{{action}}}}}: no such name"))?.index > 0;
                text += if is_true { &filled } else { "" };
                rest = behind.ok_or_else(|| format!("{{{{{action}}}}} has no {{{{end}}}}"))?;
            }
            [name] if round.is_some_and(|round| round.names.1 == name) => {
                text += round.map_or("", |round| round.value);
            }
            _ => return Err(format!("{{{{{action}}}}} is not known here")),
        }
    }
    Ok((text + rest, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_containerds_documentation_is_filled() {
        let source = r#"{"subnet":"{{.PodCIDR}}","ranges":[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":"{{$range}}"}]{{end}}],"routes":[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst":"{{$route}}"}{{end}}]}"#;
        let networks: Vec<IpNet> = ["10.1.0.0/24", "fd00::/64"].map(|text| text.parse().unwrap()).into();
        assert_eq!(
            fill(source, &networks).unwrap(),
            r#"{"subnet":"10.1.0.0/24","ranges":[[{"subnet":"10.1.0.0/24"}], [{"subnet":"fd00::/64"}]],"routes":[{"dst":"0.0.0.0/0"}, {"dst":"::/0"}]}"#
        );
        for (source, what) in [
            ("{{.Nope}}", "not known"),
            ("{{end}}", "without a beginning"),
            ("{{range $i, $x := .Routes}}", "no {{end}}"),
            ("{{range $i, $x := .Nope}}{{end}}", "no such list"),
            ("{{if $i}}{{end}}", "no such name"),
            ("{{.PodCIDR", "without its }}"),
        ] {
            assert!(fill(source, &networks).unwrap_err().contains(what), "{source}");
        }
    }
}
