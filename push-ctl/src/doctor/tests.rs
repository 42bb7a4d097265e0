use super::*;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

fn config(folder: &Path) -> Config {
    let mut config: Config = toml::from_str(Config::example()).unwrap();
    config.path = PathBuf::from("push.toml");
    config.state_dir = folder.join("state");
    config.pin_dir = folder.join("bpf");
    config
}

fn verdict(report: &Report, check: &str) -> Verdict {
    let found = report.findings.iter().find(|it| it.check == check);
    found
        .unwrap_or_else(|| panic!("no {check} in {report:?}"))
        .verdict
}

#[tokio::test]
async fn without_daemon_and_configuration_the_machine_is_looked_at() {
    let patient = Patient {
        config: Err(("no file".to_owned(), "write one".to_owned())),
        daemon: Err(("no daemon".to_owned(), "start it".to_owned())),
    };
    let report = examine(&patient).await;
    assert!(!report.healthy);
    assert_eq!(verdict(&report, "configuration"), Verdict::Fail);
    assert_eq!(verdict(&report, "daemon"), Verdict::Warn);
    assert_eq!(verdict(&report, "kernel"), Verdict::Ok);
    assert_eq!(verdict(&report, "capabilities"), Verdict::Ok);
}

#[tokio::test]
async fn what_is_bad_has_a_fix() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    std::fs::create_dir(&config.state_dir).unwrap();
    std::fs::write(config.state_dir.join("push.redb"), "garbage").unwrap();
    let certificate = folder.path().join("external.crt");
    let mut params = rcgen::CertificateParams::new(vec!["gateway".to_owned()]).unwrap();
    params.not_after = (SystemTime::now() + Duration::from_hours(24 * 7)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    config.external.certificate = Some(certificate);
    let patient = Patient {
        config: Ok(&config),
        daemon: Err(("no daemon".to_owned(), "start it".to_owned())),
    };
    let report = examine(&patient).await;
    assert_eq!(verdict(&report, "store"), Verdict::Fail);
    assert_eq!(verdict(&report, "certificate"), Verdict::Warn);
    assert_eq!(verdict(&report, "pin_dir"), Verdict::Fail);
    assert_eq!(verdict(&report, "nic:eth1"), Verdict::Fail);
    for finding in &report.findings {
        let is_good = finding.verdict == Verdict::Ok;
        let has_fix = finding.fix.as_ref().is_some_and(|fix| !fix.is_empty());
        assert_eq!(is_good, !has_fix, "{finding:?}");
        assert!(!finding.found.contains('\n'), "{finding:?}");
    }
}
