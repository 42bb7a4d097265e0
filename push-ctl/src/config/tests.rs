use super::*;

const SHORT: &str = r#"
[[nic]]
name = "eth1"
role = "both"
trigger_addresses = ["198.51.100.1"]
[internal]
listen = ["10.64.0.1:5683"]
[external]
listen = ["198.51.100.1:8443"]
"#;

fn parse(text: &str) -> Config {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn load(text: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("push.toml");
    fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|error| {
        error
            .to_string()
            .replace(&format!("{}: ", path.display()), "")
    })
}

#[test]
fn the_example_is_right_and_shows_the_defaults() {
    let example = load(Config::example()).unwrap();
    let short = parse(SHORT);
    assert_eq!(example.state_dir, short.state_dir);
    assert_eq!(example.pin_dir, short.pin_dir);
    assert_eq!(example.admin_socket, short.admin_socket);
    assert_eq!(example.sessions, short.sessions);
    assert_eq!(example.triggers, short.triggers);
    assert_eq!(example.data_plane, short.data_plane);
    assert_eq!(example.nic.len(), 2);
    assert_eq!((example.realm.len(), example.gtpu), (0, Gtpu::default()));
    assert_eq!(example.monitoring, short.monitoring);
}

#[test]
fn what_the_example_comments_out_is_right_too() {
    let uncommented: String = Config::example()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.starts_with("log_level") && !cfg!(feature = "log") => line,
            Some(key) if key.starts_with("coaps_") && !cfg!(feature = "coaps") => line,
            Some(key) if key.contains(" = ") || key.starts_with('[') => key,
            Some(_) | None => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = load(&uncommented).unwrap();
    assert_eq!(
        config.external.certificate,
        Some("/etc/push/external.crt".into())
    );
    assert_eq!(
        config.external.private_key,
        Some("/etc/push/external.key".into())
    );
    let [realm] = &config.realm[..] else {
        panic!("{:?}", config.realm);
    };
    assert_eq!(realm.name.as_str(), "meters");
    assert!(config.gtpu.ipv4().is_some() && config.gtpu.ipv6().is_some());
    assert!(config.monitoring.ca.is_some());
}

#[test]
fn a_refusal_names_the_line_or_the_key_and_what_to_write() {
    let cases = [
        ("colour = 1", "", "line 1: unknown field `colour`"),
        (
            "[sessions]\nslots = \"many\"",
            "",
            "line 2: invalid type: string \"many\", expected u32",
        ),
        (
            "[sessions]\nmax_lifetime = \"1 fortnight\"",
            "",
            "write for example `90s`, `15m` or `1h 30m`",
        ),
        (
            "[sessions]\nslots = 0",
            "",
            "sessions.slots: 0 is not between 1 and 67108864",
        ),
        (
            "[sessions]\nslots = 67108865",
            "",
            "sessions.slots: 67108865 is not between 1 and 67108864",
        ),
        (
            "[sessions]\ndefault_lifetime = \"0s\"",
            "",
            "sessions.default_lifetime: `0s` is not a number of whole seconds",
        ),
        (
            "[sessions]\nmax_lifetime = \"1500ms\"",
            "",
            "sessions.max_lifetime: `1s 500ms` is not a number of whole seconds",
        ),
        (
            "[sessions]\ndefault_lifetime = \"2days\"",
            "",
            "sessions.default_lifetime: is longer than sessions.max_lifetime; write `1day` or less",
        ),
        (
            "[monitoring]\nca = \"ca.pem\"",
            "",
            "monitoring.ca: `ca.pem` is not an absolute path",
        ),
        ("[triggers]\nport = 0", "", "triggers.port: 0 is no port"),
        (
            "[data_plane]\nallow_generik = true",
            "",
            "unknown field `allow_generik`",
        ),
        (
            "[data_plane]\nidle_after = \"10ms\"",
            "",
            "data_plane.idle_after: `10ms` is neither from 1s to 365d nor `0s` for never",
        ),
        (
            "[data_plane]\nlog_level = \"loud\"",
            "",
            "line 2: `loud` is not a level; write `error`, `warn`, `info`, `debug` or `trace`",
        ),
        (
            "[gtpu]\nlocal = [\"10.0.0.1\", \"10.0.0.2\"]",
            "",
            "gtpu.local: has 2 IPv4 addresses; there can be one per IP version",
        ),
        (
            "[gtpu]\nlocal = [\"::\"]",
            "",
            "gtpu.local: :: stands for any address; write a single one of this machine",
        ),
        (
            "state_dir = \"state\"",
            "",
            "state_dir: `state` is not an absolute path",
        ),
        (
            "",
            "role = \"both\"->role = \"outer\"",
            "unknown variant `outer`, expected one of `external`, `internal`, `both`",
        ),
        (
            "",
            "name = \"eth1\"->name = \"eth 1\"",
            "nic.name: `eth 1` can't be the name of a NIC",
        ),
        (
            "",
            "role = \"both\"->role = \"internal\"",
            "nic.eth1.trigger_addresses: role \"internal\" takes no triggers",
        ),
        (
            "",
            "role = \"both\"->role = \"internal\"",
            "nic: no NIC takes triggers",
        ),
        (
            "",
            "trigger_addresses = [\"198.51.100.1\"]->",
            "nic.eth1.trigger_addresses: is missing",
        ),
        (
            "",
            "[\"198.51.100.1\"]->[\"198.51.100.1\", \"198.51.100.2\"]",
            "nic.eth1.trigger_addresses: has 2 IPv4 addresses; there can be one per IP version",
        ),
        (
            "",
            "[\"198.51.100.1\"]->[\"224.0.0.1\"]",
            "nic.eth1.trigger_addresses: 224.0.0.1 stands for many machines",
        ),
        (
            "",
            "10.64.0.1:5683->0.0.0.0:5683",
            "internal.listen: 0.0.0.0 stands for any address; write a single one",
        ),
        (
            "",
            "10.64.0.1:5683->[::]:5683",
            "internal.listen: :: stands for any address",
        ),
        (
            "",
            "10.64.0.1:5683->[::ffff:10.64.0.1]:5683",
            "internal.listen: ::ffff:10.64.0.1 is an IPv4 address in disguise; write 10.64.0.1",
        ),
        (
            "",
            "10.64.0.1:5683->10.64.0.1:0",
            "internal.listen: 10.64.0.1:0 has port 0",
        ),
        ("", "10.64.0.1:5683->10.64.0.1", "invalid socket address"),
        (
            "",
            "[\"10.64.0.1:5683\"]->[\"10.64.0.1:5683\", \"10.64.0.1:5683\"]",
            "internal.listen: 10.64.0.1:5683 is there twice",
        ),
        (
            "",
            "10.64.0.1:5683->198.51.100.1:5050",
            "198.51.100.1 with triggers.port is in internal.listen, too",
        ),
        (
            "",
            "[\"198.51.100.1:8443\"]->[]",
            "external.listen: is empty",
        ),
        (
            "",
            "[\"198.51.100.1:8443\"]->[\"198.51.100.1:8443\"]\ncertificate = \"/a\"",
            "external.private_key: is missing",
        ),
        (
            "",
            "[\"198.51.100.1:8443\"]->[\"198.51.100.1:8443\"]\nprivate_key = \"/a\"",
            "external.certificate: is missing",
        ),
    ];
    for (prefix, edit, expected) in cases {
        let mut text = SHORT.to_owned();
        if let Some((from, to)) = edit.split_once("->") {
            assert!(text.contains(from), "{edit}");
            text = text.replace(from, to);
        }
        let error = load(&format!("{prefix}\n{text}")).unwrap_err();
        assert!(
            error.contains(expected),
            "{error}\n  should say: {expected}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn all_problems_are_named_at_once() {
    let text = SHORT.replace("10.64.0.1", "0.0.0.0").replace(":8443", ":0");
    let error = load(&text).unwrap_err();
    assert!(
        error.contains("internal.listen") && error.contains("external.listen"),
        "{error}"
    );
}

#[test]
fn a_nic_is_configured_once() {
    let again = "[[nic]]\nname = \"eth1\"\nrole = \"internal\"\n";
    let error = load(&format!("{SHORT}{again}")).unwrap_err();
    assert!(error.contains("nic.eth1: is there twice"), "{error}");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let error = load(&format!("admin_socket = \"/{}\"\n{SHORT}", "x".repeat(107))).unwrap_err();
    assert!(
        error.contains("admin_socket: is 108 bytes long; a socket's path has 107 at most"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nonexistent/push.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "can't read the configuration /nonexistent/push.toml: No such file or directory (os error 2)"
    );
}

const REALM: &str = r#"
[[realm]]
name = "meters"
interface = "eth2.100"
next_hop = ["10.0.0.254"]
listen = ["10.0.0.1:5683"]
"#;

#[test]
fn two_realms_may_listen_on_one_address_by_two_interfaces() {
    let other = REALM.replace("meters", "cars").replace(".100", ".200");
    let config = load(&format!("{SHORT}{REALM}{other}")).unwrap();
    assert_eq!(config.realm[0].listen, config.realm[1].listen);
}

#[test]
fn a_realm_that_makes_no_sense_is_refused() {
    let long = "x".repeat(33);
    let many = (0..256).map(|n| {
        REALM
            .replace("meters", &format!("m{n}"))
            .replace(".100", &format!(".{n}"))
    });
    let cases = [
        (
            REALM.replace("meters", "two words"),
            "line 12: realm name must be 1 to 32 of the characters A-Z a-z 0-9 . _ -",
        ),
        (REALM.replace("meters", &long), "realm name must be 1 to 32"),
        (
            REALM.replace("eth2.100", "a name too long for a NIC"),
            "realm.meters.interface: `a name too long for a NIC` can't be the name of a NIC",
        ),
        (
            REALM.replace("10.0.0.254", "0.0.0.0"),
            "realm.meters.next_hop: 0.0.0.0 stands for any address; write a single one of a router",
        ),
        (
            REALM.replace("[\"10.0.0.254\"]", "[\"fe80::1\", \"fe80::2\"]"),
            "realm.meters.next_hop: has 2 IPv6 addresses; there can be one per IP version",
        ),
        (
            REALM.replace("\"10.0.0.1:5683\"", ""),
            "realm.meters.listen: is empty",
        ),
        (
            REALM.replace(
                "[\"10.0.0.1:5683\"]",
                "[\"10.0.0.1:5683\", \"10.0.0.1:5683\"]",
            ),
            "realm.meters.listen: 10.0.0.1:5683 is there twice; write it once",
        ),
        (
            REALM.replace("10.0.0.1:5683", "10.64.0.1:5683"),
            "realm.meters.listen: 10.64.0.1:5683 is in internal.listen, too; give one of them another address or port",
        ),
        (
            REALM.replace("10.0.0.1:5683", "198.51.100.1:5050"),
            "nic.eth1.trigger_addresses: 198.51.100.1 with triggers.port is in realm.meters.listen, too",
        ),
        (
            format!("{REALM}{REALM}"),
            "realm.meters: is there twice; give each realm a name of its own",
        ),
        (
            format!("{REALM}{}", REALM.replace("meters", "cars")),
            "realm.cars.listen: realm meters listens on 10.0.0.1:5683 of eth2.100, too",
        ),
        (
            many.collect(),
            "realm: there are 256 sections; 255 is the most",
        ),
    ];
    for (realms, expected) in cases {
        let error = load(&format!("{SHORT}{realms}")).unwrap_err();
        assert!(
            error.contains(expected) && error.matches(": ").count() < 4,
            "{error}\n  should say, and only once: {expected}"
        );
    }
}

#[test]
fn a_level_is_only_for_a_program_that_logs() {
    let loaded = load(&format!("[data_plane]\nlog_level = \"debug\"\n{SHORT}"));
    if cfg!(feature = "log") {
        assert_eq!(
            loaded.unwrap().data_plane.log_level,
            Some(tracing::Level::DEBUG)
        );
    } else {
        let error = loaded.unwrap_err();
        assert!(error.contains("built without the feature `log`"), "{error}");
    }
}

/// What is refused is refused in one line, and what isn't doesn't differ from itself.
pub(crate) fn judge_text(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return; // Not read at all.
    };
    match Config::parse(text) {
        Ok(config) => {
            if let Err(problems) = config.check() {
                assert!(!problems.to_string().is_empty());
            }
            assert_eq!(Changes::between(&config, &config), Changes::default());
        }
        Err(what) => assert!(!what.contains('\n'), "{what}"),
    }
}
