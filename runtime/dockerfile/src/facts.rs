//! What the real dockerd 28.5.2 made of Dockerfiles, with its classic builder. The image `b` has the
//! command `sh` and nothing else.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::{
    BuildArgs, Config, Dockerfile, Effect, Error, Instruction, State, created_by, expand, trigger,
};

#[derive(Default)]
struct Outcome {
    steps: Vec<String>,
    history: Vec<String>,
    config: Config,
}

/// Builds without files and containers. The last stage's history is what is left.
fn build(text: &str, arguments: &[(&str, Option<&str>)]) -> Result<Outcome, Error> {
    let file = Dockerfile::parse("Dockerfile", text.as_bytes())?;
    let given = arguments.iter().map(|(key, value)| (key.to_string(), value.map(str::to_owned)));
    let mut arguments = BuildArgs::new(given.collect());
    let mut outcome = Outcome::default();
    for meta in &file.meta_args {
        outcome.steps.push(meta.line.text.clone());
        let variables = arguments.for_meta_args();
        let expanded =
            Instruction::Arg(meta.arguments.clone()).expanded(file.escape, &variables)?;
        let Instruction::Arg(expanded) = expanded else { panic!("{expanded:?}") };
        for argument in expanded {
            arguments.add_meta(&argument.key, argument.value.as_deref());
        }
    }
    let mut stages: HashMap<String, Config> = HashMap::new();
    for stage in &file.stages {
        outcome.steps.push(stage.line.text.clone());
        outcome.history.clear();
        let from = expand(&stage.from, file.escape, &arguments.for_from())?;
        let base = match from.as_str() {
            "scratch" => Config::default(),
            "b" => Config { cmd: Some(vec!["sh".to_owned()]), ..Config::default() },
            stage => stages[stage].clone(),
        };
        let mut state = State::begin(base, arguments.begin_stage());
        for text in state.take_triggers() {
            let step = trigger(&text)?;
            apply(&mut state, &step.instruction, file.escape, &mut outcome)?;
        }
        for step in &stage.steps {
            outcome.steps.push(step.line.text.clone());
            apply(&mut state, &step.instruction, file.escape, &mut outcome)?;
        }
        arguments.end_stage(&state.arguments);
        stages.extend(stage.name.clone().map(|name| (name, state.config.clone())));
        outcome.config = state.config;
    }
    Ok(outcome)
}

fn apply(
    state: &mut State,
    instruction: &Instruction,
    escape: char,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let instruction = instruction.expanded(escape, &state.variables())?;
    match state.apply(&instruction)? {
        Effect::Commit { probe } | Effect::Workdir { probe } | Effect::Run { probe, .. } => {
            outcome.history.push(created_by(&probe));
        }
        Effect::Transfer => {}
    }
    Ok(())
}

/// The message for one instruction behind `FROM b`.
fn error(instruction: &str) -> String {
    match build(&format!("FROM b\n{instruction}"), &[]) {
        Ok(_) => "no error".to_owned(),
        Err(Error(message)) => message,
    }
}

#[test]
fn files_that_are_wrong_as_a_whole() {
    for (file, message) in [
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("# x\n", "failed to parse Dockerfile: file with no instructions"),
        ("RUN x", "no build stage in current context"),
        ("FOO\nENV x", "failed to parse Dockerfile: ENV must have two arguments"),
        (
            "# escape=x\nFROM b",
            "failed to parse Dockerfile: invalid escape token 'x' does not match ` or \\",
        ),
        (
            "# escape=`\n# escape=`\nFROM b",
            "failed to parse Dockerfile: only one escape parser directive can be used",
        ),
        ("FROM", "dockerfile parse error on line 1: FROM requires either one or three arguments"),
        (
            "FROM b x",
            "dockerfile parse error on line 1: FROM requires either one or three arguments",
        ),
        (
            "FROM b AS 1x",
            "dockerfile parse error on line 1: invalid name for build stage: \"1x\", name can't start \
             with a number or contain symbols",
        ),
        ("FROM --foo=x b", "dockerfile parse error on line 1: unknown flag: --foo"),
    ] {
        assert_eq!(build(file, &[]).err(), Some(Error::new(message)), "{file}");
    }
}

#[test]
fn instructions_that_do_not_parse() {
    for (instruction, message) in [
        ("FOO x", "unknown instruction: FOO (did you mean FROM?)"),
        ("rn x", "unknown instruction: rn (did you mean run?)"),
        ("Rn x", "unknown instruction: Rn (did you mean run?)"),
        ("COPY f <<EOT\nEOT", "COPY cannot accept a heredoc as a destination"),
        ("RUN --network=foo true", "invalid network mode \"foo\""),
        ("RUN --security=insecure true", "unknown flag: --security"),
        ("COPY --parents f /", "unknown flag: --parents"),
        ("COPY --chown=a --chown=b f /", "duplicate flag specified: --chown"),
        ("COPY --chown f /", "missing a value on flag: --chown"),
        ("COPY --form=x f /", "unknown flag: --form (did you mean from?)"),
        ("COPY --link=yes f /", "expecting boolean value for flag --link, not: yes"),
        ("ENV --x=1 a=b", "unknown flag: --x"),
        (
            "COPY f",
            "COPY requires at least two arguments, but only one was provided. Destination could not be \
             determined",
        ),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ENV =x", "ENV names can not be blank"),
        ("ENV", "ENV requires at least one argument"),
        ("LABEL", "LABEL requires at least one argument"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("USER", "USER requires exactly one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("SHELL /bin/sh", "SHELL requires the arguments to be in JSON form"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK FOO x", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK --interval=10 CMD x", "time: missing unit in duration \"10\""),
        ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=x CMD x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("HEALTHCHECK --interval=1x --foo CMD x", "unknown flag: --foo"),
    ] {
        let message = format!("dockerfile parse error on line 2: {message}");
        assert_eq!(error(instruction), message, "{instruction}");
    }
}

#[test]
fn instructions_that_have_no_form() {
    for (instruction, message) in [
        ("RUN <<EOT\nx", "unterminated heredoc"),
        ("ONBUILD ENV x", "ENV must have two arguments"),
        ("LABEL x", "LABEL must have two arguments"),
        (
            "CMD [\"a\", 1]",
            "when using JSON array syntax, arrays must be comprised of strings only",
        ),
        ("ENV a=1 b", "Syntax error - can't find = in \"b\". Must be of the form: name=value"),
    ] {
        assert_eq!(error(instruction), format!("failed to parse Dockerfile: {message}"));
    }
}

#[test]
fn instructions_that_cannot_be_applied() {
    let buildkit = |option: &str| {
        format!(
            "the --{option} option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to \
             learn how to build images with BuildKit enabled"
        )
    };
    for (instruction, message) in [
        ("RUN --mount=type=cache,target=/x true", buildkit("mount").as_str()),
        ("RUN --network=none true", &buildkit("network")),
        ("COPY --chmod=755 f /", &buildkit("chmod")),
        ("ADD --chmod=755 f /", &buildkit("chmod")),
        ("EXPOSE x", "invalid containerPort: x"),
        ("EXPOSE 80/foo", "invalid proto: foo"),
        ("EXPOSE 90-80", "invalid containerPort: 90-80"),
        ("VOLUME $x", "VOLUME specified can not be an empty string"),
        ("WORKDIR $x", "cannot normalize nothing"),
        ("STOPSIGNAL FOO", "invalid signal: FOO"),
        ("ENV a=${", "failed to process \"${\": syntax error: missing '}'"),
        ("ENV a=${x!}", "failed to process \"${x!}\": unsupported modifier (!) in substitution"),
        ("ENV a=${x:?no}", "failed to process \"${x:?no}\": x: no"),
        (
            "ENV a=\"x",
            "failed to process \"\\\"x\": unexpected end of statement while looking for matching \
             double-quote",
        ),
        // These are none.
        ("COPY --link f /", "no error"),
        ("COPY --exclude=*.x f /", "no error"),
        ("ADD --checksum=sha256:00 f /", "no error"),
        ("ONBUILD FOO x", "no error"),
        ("CMD [\"a\", 'b']", "no error"),
        ("RUN [\"echo\", \"<<EOF\"]", "no error"),
    ] {
        assert_eq!(error(instruction), message, "{instruction}");
    }
}

/// The history of the last stage, without `/bin/sh -c `.
fn history(text: &str) -> Vec<String> {
    let outcome = build(text, &[]).unwrap();
    let short = |line: &String| line.strip_prefix("/bin/sh -c ").unwrap_or(line).to_owned();
    outcome.history.iter().map(short).collect()
}

#[test]
fn what_the_history_says() {
    for (file, lines) in [
        (
            "FROM b\nENV p=\"80 81\" q=90\nEXPOSE $p ${q}/udp 80${u:-81} 1000-1002",
            &["#(nop)  ENV p=80 81 q=90", "#(nop)  EXPOSE 80 81 90/udp 1000-1002 81"][..],
        ),
        (
            "FROM b\nENV a=\"\\$x \\\\ y\" b=\\\\ c='\\n' d=x\\ y e= f=\"\" g=\"'\" h='\"' i=\"a'b\" j=é k=",
            &["#(nop)  ENV a=$x \\ y b=\\ c=\\n d=x y e= f= g=' h=\" i=a'b j=é k="],
        ),
        (
            "FROM b\nENV a   \"b c\"  d\\ e\nENV b $a x\nENV b=${b#*c}\nENV PATH=/x:$PATH\n\
             LABEL a   \"b c\"  d\nLABEL \"x y\"=z x\\ z=w 'q'=$b",
            &[
                "#(nop)  ENV a=b c  d e",
                "#(nop)  ENV b=b c  d e x",
                "#(nop)  ENV b=  d e x",
                "#(nop)  ENV PATH=/x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "#(nop)  LABEL a=b c  d",
                "#(nop)  LABEL x y=z x z=w q=  d e x",
            ],
        ),
        (
            "FROM b\nSHELL [\"/bin/bash\",\"-c\"]\nCMD a  \"b\" $c\n\
             ENTRYPOINT [\"x\", \"\\u00e9\\n\\u200b\\\"'\"]",
            &[
                "/bin/bash -c #(nop)  SHELL [/bin/bash -c]",
                "/bin/bash -c #(nop)  CMD [\"/bin/bash\" \"-c\" \"a  \\\"b\\\" $c\"]",
                "/bin/bash -c #(nop)  ENTRYPOINT [\"x\" \"é\\n\\u200b\\\"'\"]",
            ],
        ),
        (
            "FROM b\nCMD\nENTRYPOINT x\nENTRYPOINT []",
            &[
                "#(nop)  CMD [\"/bin/sh\" \"-c\"]",
                "#(nop)  ENTRYPOINT [\"/bin/sh\" \"-c\" \"x\"]",
                "#(nop)  ENTRYPOINT []",
            ],
        ),
        (
            "FROM b\nWORKDIR a/b\nWORKDIR ../c/\nENV d=/e//f\nWORKDIR $d\nWORKDIR ./g",
            &[
                "#(nop) WORKDIR /a/b",
                "#(nop) WORKDIR /a/c",
                "#(nop)  ENV d=/e//f",
                "#(nop) WORKDIR /e/f",
                "#(nop) WORKDIR /e/f/g",
            ],
        ),
        (
            "FROM b\nENV u=root\nUSER $u:0\nSTOPSIGNAL ${s:-sigterm}\nVOLUME /a/ /v$u\n\
             VOLUME [\"/b c\", \"/$u\"]",
            &[
                "#(nop)  ENV u=root",
                "#(nop)  USER root:0",
                "#(nop)  STOPSIGNAL sigterm",
                "#(nop)  VOLUME [/a/ /vroot]",
                "#(nop)  VOLUME [/b c /root]",
            ],
        ),
        (
            "FROM b\nHEALTHCHECK --interval=1m30s --timeout=1500ms --start-period=2h \
             --start-interval=100ms --retries=39 CMD curl  \"x\" || exit 1\n\
             HEALTHCHECK --retries=10 CMD [\"a\",\"b c\"]\nHEALTHCHECK NONE",
            &[
                "#(nop)  HEALTHCHECK &{[\"CMD-SHELL\" \"curl  \\\"x\\\" || exit 1\"] \"1m30s\" \"1.5s\" \
                 \"2h0m0s\" \"100ms\" '\\''}",
                "#(nop)  HEALTHCHECK &{[\"CMD\" \"a\" \"b c\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\n'}",
                "#(nop)  HEALTHCHECK &{[\"NONE\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}",
            ],
        ),
        (
            "FROM b\nONBUILD  COPY   . /x\nonbuild run echo \\\n   a\nONBUILD RUN <<EOF\nhi\nEOF",
            &[
                "#(nop)  ONBUILD COPY   . /x",
                "#(nop)  ONBUILD run echo    a",
                "#(nop)  ONBUILD RUN <<EOF\nhi\nEOF",
            ],
        ),
        (
            "FROM b AS one\nCMD [\"one\"]\nFROM one\nLABEL a=b\nMAINTAINER  a  b \n\
             ARG v=\"x y\" w='z'\nARG v=$v$w n",
            &[
                "#(nop)  LABEL a=b",
                "#(nop)  MAINTAINER a  b",
                "#(nop)  ARG v=x y w=z",
                "#(nop)  ARG v=x yz n",
            ],
        ),
        (
            "# escape=`\nFROM b\nENV a=c:\\x b=`$a `\n  c=`\"d`\"",
            &["#(nop)  ENV a=c:\\x b=$a c=\"d\""],
        ),
        ("FROM b AS x\nONBUILD RUN echo t\nFROM x", &["echo t"]),
        ("\tFROM\tb\n\tENV\ta\tb\tc", &["#(nop)  ENV a=b\tc"]),
        ("FROM b\r\nRUN echo a \\\r\n  b\r\n", &["echo a   b"]),
    ] {
        assert_eq!(history(file), lines, "{file}");
    }
}

#[test]
fn what_the_steps_say() {
    let file = "# a\n # b\nFROM b\n  # c\n  ENV a=1 \\\n# d\n    b=2 \\\n\n    c=3\nENV x \\\ny\n\
                RUN <<A cat\nx\nA\n";
    let outcome = build(file, &[]).unwrap();
    let steps = ["FROM b", "ENV a=1     b=2     c=3", "ENV x y", "RUN <<A cat"];
    assert_eq!(outcome.steps, steps);
    let warnings = Dockerfile::parse("", file.as_bytes()).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "[WARNING]: Empty continuation line found in: ENV a=1     b=2     c=3",
            "[WARNING]: Empty continuation lines will become errors in a future release.",
        ]
    );
}

#[test]
fn build_arguments_are_a_part_of_run() {
    let file = "ARG z=1 m=$z\nFROM b\nRUN echo\nARG m z x=2\nRUN echo $x $m $HTTP_PROXY\n\
                ENV x=env\nRUN echo $x\nARG HTTP_PROXY\nRUN [\"echo\",\"b c\"]";
    let given = [("x", Some("1")), ("y", None), ("HTTP_PROXY", Some("p")), ("z", Some("9"))];
    assert_eq!(
        build(file, &given).unwrap().history,
        [
            "|0 /bin/sh -c echo",
            "/bin/sh -c #(nop)  ARG m z x=2",
            "|3 m= x=1 z=9 /bin/sh -c echo $x $m $HTTP_PROXY",
            "/bin/sh -c #(nop)  ENV x=env",
            "|2 m= z=9 /bin/sh -c echo $x",
            "/bin/sh -c #(nop)  ARG HTTP_PROXY",
            "|3 HTTP_PROXY=p m= z=9 echo b c",
        ]
    );
}

#[test]
fn what_becomes_of_the_config() {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for (file, expected) in [
        ("FROM scratch\nENV a=b", json!({ "Env": [path, "a=b"] })),
        (
            "FROM b\nENTRYPOINT echo",
            json!({ "Env": [path], "Entrypoint": ["/bin/sh", "-c", "echo"] }),
        ),
        ("FROM b\nCMD []\nENTRYPOINT [\"a\"]", json!({ "Env": [path], "Entrypoint": ["a"] })),
        ("FROM b\nCMD [\"c\"]\nENTRYPOINT", json!({ "Env": [path], "Cmd": ["c"] })),
        (
            "FROM b\nHEALTHCHECK --interval=1s CMD x\nHEALTHCHECK --retries=10 CMD [\"a\"]",
            json!({
                "Env": [path],
                "Cmd": ["sh"],
                "Healthcheck": { "Test": ["CMD", "a"], "Interval": 1_000_000_000, "Retries": 10 },
            }),
        ),
        (
            "FROM b\nUSER u\nSTOPSIGNAL 9\nVOLUME /a\nWORKDIR w\nEXPOSE 1-2\nLABEL l=m\nSHELL [\"s\"]",
            json!({
                "Env": [path],
                "Cmd": ["sh"],
                "User": "u",
                "StopSignal": "9",
                "Volumes": { "/a": {} },
                "WorkingDir": "/w",
                "ExposedPorts": { "1/tcp": {}, "2/tcp": {} },
                "Labels": { "l": "m" },
                "Shell": ["s"],
            }),
        ),
        (
            "FROM b AS one\nONBUILD ENV a=b\nFROM one",
            json!({ "Env": [path, "a=b"], "Cmd": ["sh"] }),
        ),
    ] {
        let config = build(file, &[]).unwrap().config;
        let Ok(Value::Object(mut config)) = serde_json::to_value(config) else { panic!("{file}") };
        config
            .retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)) && *value != "");
        assert_eq!(Value::Object(config), expected, "{file}");
    }
}

#[test]
fn bytes_that_are_no_text_become_what_json_makes_of_them() {
    let file = b"\xef\xbb\xbfFROM b\nENV a=\xff\xfe";
    let parsed = Dockerfile::parse("Dockerfile", file).unwrap();
    assert_eq!(parsed.stages[0].steps[0].line.text, "ENV a=\u{fffd}\u{fffd}");
}

#[test]
fn heredocs_belong_to_their_instruction() {
    let file =
        "FROM b\nRUN <<-'A' cat 3<<B\n\tx\n\tA\n$y\nB\nCOPY <<C d <<\"E\" /x/\n$a\nC\n$b\nE\n";
    let parsed = Dockerfile::parse("", file.as_bytes()).unwrap();
    let [run, copy] = parsed.stages[0].steps.as_slice() else { panic!("{parsed:?}") };
    let Instruction::Run(run) = &run.instruction else { panic!("{run:?}") };
    let seen: Vec<_> = run
        .heredocs
        .iter()
        .map(|h| (h.name.as_str(), h.text(), h.is_expanded, h.descriptor))
        .collect();
    assert_eq!(seen, [("A", "x\n".to_owned(), false, 0), ("B", "$y\n".to_owned(), true, 3)]);
    assert_eq!(copy.line.first, 7);
    assert_eq!(copy.line.last, 11);
    let variables = crate::Variables::of(["a=1", "b=2"]);
    let expanded = copy.instruction.expanded('\\', &variables).unwrap();
    let Instruction::Copy(copy) = expanded else { panic!("{expanded:?}") };
    assert_eq!((copy.sources.paths, copy.sources.destination), (vec!["d".into()], "/x/".into()));
    let contents: BTreeMap<_, _> =
        copy.sources.contents.iter().map(|h| (h.name.as_str(), h.content.as_str())).collect();
    assert_eq!(contents, BTreeMap::from([("C", "1\n"), ("E", "$b\n")]));
}

#[test]
fn a_heredoc_is_run() {
    assert_eq!(history("FROM b\nRUN <<A\necho a\nA"), ["echo a\n"]);
    assert_eq!(history("FROM b\nRUN cat <<A <<B\nx\nA\ny\nB"), ["cat <<A <<B\nx\nA\ny\nB"]);
    assert!(error("RUN <<A\n#!/bin/perl\nA").contains("requires BuildKit"));
}

#[test]
fn hostile_files_are_bounded() {
    for (file, message) in [
        (
            format!("FROM b\nRUN {}", "x".repeat(1 << 16)),
            "failed to parse Dockerfile: dockerfile line greater than max allowed size of 65535",
        ),
        (
            "x".repeat(crate::MAX_FILE + 1),
            "failed to parse Dockerfile: the Dockerfile is larger than 1048576 bytes",
        ),
        (
            "FROM b\n".repeat(10_001),
            "failed to parse Dockerfile: the Dockerfile has more than 10000 instructions",
        ),
    ] {
        assert_eq!(build(&file, &[]).err(), Some(Error::new(message)));
    }
    let chain = format!("FROM b\n{}RUN x", "ONBUILD \\\n".repeat(50_000));
    assert!(build(&chain, &[]).is_err());
    let many: String = (0..100).map(|n| format!("ENV v{n}=$a\n")).collect();
    assert!(build(&format!("FROM b\nENV a={}\n{many}", "x".repeat(60_000)), &[]).is_err());
    let growing = format!("FROM b\nENV a=xxxxxxxx\n{}", "ENV a=$a$a$a$a\n".repeat(30));
    assert!(build(&growing, &[]).is_err());
}
