use super::*;
use crate::ktransfer::test_backend::wait_until;

#[test]
fn ip_addresses_resolve_at_once_and_names_after_the_first_look_up() {
    let resolver = BackendResolver::new(&[
        "127.0.0.1".into(),
        "https://127.0.0.2".into(),
        "[::1]:81".into(),
        "localhost:82".into(),
        "no.invalid:1".into(),
    ]);
    assert_eq!(resolver.addresses("127.0.0.1:80").unwrap(), ["127.0.0.1:80".parse().unwrap()]);
    assert_eq!(resolver.addresses("127.0.0.2:443").unwrap(), ["127.0.0.2:443".parse().unwrap()]);
    assert_eq!(resolver.addresses("[::1]:81").unwrap(), ["[::1]:81".parse().unwrap()]);
    assert!(resolver.addresses("127.0.0.1:81").unwrap_err().to_string().contains("not one of backend_servers"));
    assert!(resolver.has_names());
    assert!(!BackendResolver::new(&["10.0.0.1:80".into()]).has_names());
    let stop = Stop::new();
    std::thread::scope(|scope| {
        scope.spawn(|| resolver.run(&stop));
        wait_until("the names are looked up", || resolver.lock().unresolved().is_empty());
        assert!(resolver.addresses("localhost:82").unwrap().iter().all(|address| address.port() == 82));
        assert!(matches!(resolver.addresses("no.invalid:1"), Err(LookupFailure::Failed(_))));
        stop.trigger();
    });
}

#[test]
fn requests_for_a_name_that_hangs_never_wait() {
    // Nothing looks the names up.
    let resolver = BackendResolver::new(&["hangs.invalid".into(), "https://other.invalid".into()]);
    let is_unresolved = |server| resolver.unresolved().has(server);
    assert!(is_unresolved("hangs.invalid") && is_unresolved("https://other.invalid"));
    let pending = LookupFailure::Pending("hangs.invalid:80".to_owned());
    assert_eq!(pending.to_string(), "\"hangs.invalid:80\" is not resolved yet");
    assert_eq!(resolver.addresses("hangs.invalid:80"), Err(pending));
    resolver.note("other.invalid:443", Ok(vec!["10.0.0.1:443".parse().unwrap()]));
    assert!(is_unresolved("hangs.invalid") && !is_unresolved("https://other.invalid"));
    resolver.replace(&["new.invalid".into()]);
    assert!(is_unresolved("new.invalid") && !is_unresolved("hangs.invalid"));
}

#[test]
fn names_that_hang_delay_no_other_name() {
    let names: Vec<String> = (0..6).map(|number| format!("hangs-{number}:1")).chain(["good:1".into()]).collect();
    let (release, released) = bounded::<()>(0);
    let address: SocketAddr = "10.0.0.9:1".parse().unwrap();
    let lookups = NameLookups::with(move |name| {
        if name.starts_with("hangs") {
            let _ = released.recv();
        }
        Ok(vec![address])
    });
    let (resolver, stop) = (BackendResolver::new(&names), Stop::new());
    std::thread::scope(|scope| {
        scope.spawn(|| resolver.run_with(lookups, &stop));
        wait_until("the good name is looked up", || !resolver.unresolved().has("good:1"));
        let good = resolver.addresses("good:1");
        // One that a reload adds is not behind them either.
        let names: Vec<String> = names.iter().cloned().chain(["added:1".into()]).collect();
        resolver.replace(&names);
        wait_until("the added name is looked up", || !resolver.unresolved().has("added:1"));
        let added = resolver.addresses("added:1");
        stop.trigger();
        assert_eq!((good, added), (Ok(vec![address]), Ok(vec![address])));
    });
    drop(release);
}

#[test]
fn a_change_keeps_what_is_known_and_what_pushes_under_way_need() {
    let servers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let resolver = BackendResolver::new(&servers(&["stays:1", "goes:2", "10.0.0.1:3"]));
    let address: SocketAddr = "10.0.0.9:1".parse().unwrap();
    for name in ["stays:1", "goes:2"] {
        resolver.note(name, Ok(vec![address]));
    }
    resolver.replace(&servers(&["stays:1", "10.0.0.2:4"]));
    assert_eq!(resolver.addresses("stays:1"), Ok(vec![address]));
    assert_eq!(resolver.addresses("goes:2"), Ok(vec![address]), "a push may have chosen it");
    assert_eq!(resolver.addresses("10.0.0.1:3").unwrap().len(), 1);
    assert_eq!(resolver.addresses("10.0.0.2:4").unwrap().len(), 1);
    assert_eq!(resolver.lock().names(), ["stays:1"], "what is gone is looked up no more");
    resolver.lock().entry("goes:2").unwrap().removed = Instant::now().checked_sub(REMOVED_LIFETIME);
    resolver.replace(&servers(&["no.invalid:5"]));
    assert!(resolver.addresses("goes:2").unwrap_err().to_string().contains("not one of backend_servers"));
    let stop = Stop::new();
    std::thread::scope(|scope| {
        scope.spawn(|| resolver.run(&stop));
        resolver.replace(&servers(&["localhost:82"]));
        wait_until("the thread is woken", || resolver.addresses("localhost:82").is_ok());
        stop.trigger();
    });
}
