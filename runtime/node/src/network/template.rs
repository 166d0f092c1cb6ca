//! A conf list with placeholders for the pods' networks, as containerd's `conf_template` is.
//!
//! The language is Go's text/template. These actions of it are known, which are the ones in
//! containerd's documentation: `{{.PodCIDR}}`, `{{range $i, $x := .PodCIDRRanges}}`, the same of
//! `.Routes`, `{{if $i}}`, `{{$x}}`, `{{end}}`.

use ipnet::IpNet;

/// The template with the pods' networks in it.
///
/// # Errors
/// Another action, or a block without its end.
pub(super) fn fill(source: &str, networks: &[IpNet]) -> Result<String, String> {
    let lists = Lists {
        networks: networks.iter().map(ToString::to_string).collect(),
        routes: networks.iter().map(|network| default_route(network).to_owned()).collect(),
    };
    match block(source, &lists, None)? {
        (text, None) => Ok(text),
        (_, Some(_)) => Err("an {{end}} without a beginning".to_owned()),
    }
}

fn default_route(network: &IpNet) -> &'static str {
    if network.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

/// The values of `.PodCIDRRanges` and `.Routes`.
struct Lists {
    networks: Vec<String>,
    routes: Vec<String>,
}

/// One round of a `range`.
#[derive(Clone, Copy)]
struct Round<'a> {
    index_name: &'a str,
    value_name: &'a str,
    index: usize,
    value: &'a str,
}

/// Fills in `source` up to the `{{end}}` of the block that it is in. Returns what follows that, or
/// `None` if the text ended first.
fn block<'a>(
    source: &'a str,
    lists: &Lists,
    round: Option<Round>,
) -> Result<(String, Option<&'a str>), String> {
    let mut text = String::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{{") {
        text += before;
        let (action, after) = after.split_once("}}").ok_or("a {{ without its }}")?;
        rest = after;
        match action.split_whitespace().collect::<Vec<_>>()[..] {
            ["end"] => return Ok((text, Some(after))),
            [".PodCIDR"] => text += lists.networks.first().map_or("", String::as_str),
            ["range", index_name, value_name, ":=", list] => {
                let values = match list {
                    ".PodCIDRRanges" => &lists.networks,
                    ".Routes" => &lists.routes,
                    _ => return Err(format!("{{{{{action}}}}}: no such list")),
                };
                let index_name = index_name.trim_end_matches(',');
                // The block is read once for each value. Without any it is not read at all, and its
                // end is one too many: `fill` is never called without networks.
                for (index, value) in values.iter().enumerate() {
                    let round = Round { index_name, value_name, index, value };
                    let (filled, behind) = block(after, lists, Some(round))?;
                    text += &filled;
                    rest = behind.ok_or_else(|| no_end(action))?;
                }
            }
            ["if", name] => {
                let (filled, behind) = block(after, lists, round)?;
                let round = round
                    .filter(|round| round.index_name == name)
                    .ok_or_else(|| format!("{{{{{action}}}}}: no such name"))?;
                // In Go a number is true unless it is 0.
                if round.index > 0 {
                    text += &filled;
                }
                rest = behind.ok_or_else(|| no_end(action))?;
            }
            [name] if round.is_some_and(|round| round.value_name == name) => {
                text += round.map_or("", |round| round.value);
            }
            _ => return Err(format!("{{{{{action}}}}} is not known here")),
        }
    }
    Ok((text + rest, None))
}

fn no_end(action: &str) -> String {
    format!("{{{{{action}}}}} has no {{{{end}}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_containerds_documentation_is_filled() {
        let source = concat!(
            r#"{"subnet":"{{.PodCIDR}}","#,
            r#""ranges":[{{range $i, $range := .PodCIDRRanges}}"#,
            r#"{{if $i}}, {{end}}[{"subnet":"{{$range}}"}]{{end}}],"#,
            r#""routes":[{{range $i, $route := .Routes}}"#,
            r#"{{if $i}}, {{end}}{"dst":"{{$route}}"}{{end}}]}"#,
        );
        let networks: Vec<IpNet> =
            ["10.1.0.0/24", "fd00::/64"].map(|text| text.parse().unwrap()).into();
        let filled = concat!(
            r#"{"subnet":"10.1.0.0/24","#,
            r#""ranges":[[{"subnet":"10.1.0.0/24"}], [{"subnet":"fd00::/64"}]],"#,
            r#""routes":[{"dst":"0.0.0.0/0"}, {"dst":"::/0"}]}"#,
        );
        assert_eq!(fill(source, &networks).unwrap(), filled);
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
