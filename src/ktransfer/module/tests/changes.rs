//! A change of the settings of a running module.

use super::*;

#[test]
fn pushes_follow_a_change_in_place_and_those_under_way_end_as_they_began() {
    let (is_held, has_begun) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (held, begun) = (Arc::clone(&is_held), Arc::clone(&has_begun));
    let mut rig = ModuleRig::start(
        1,
        |config| config.worker_num = one(),
        move |_| {
            begun.store(true, Ordering::SeqCst);
            while held.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            200
        },
    );
    let new_backend = TestBackend::start(|_| 200);
    rig.broker.put("t", 0, Some(b"k"), b"first");
    rig.broker.put("t", 0, Some(b"k"), b"second");
    rig.gain(0, 1, Some(0));
    wait_until("the first push is under way", || has_begun.load(Ordering::SeqCst));
    let mut config = rig.live.config();
    config.backend_servers = vec![new_backend.server.clone()];
    config.protocol.headers = vec![("X-Version".to_owned(), "2".to_owned())];
    rig.live.change(config);
    is_held.store(false, Ordering::SeqCst);
    wait_until("both are committed", || rig.commit_point(0) == Some(2));
    let bodies = |backend: &TestBackend| -> Vec<Vec<u8>> {
        backend.received().into_iter().map(|request| request.body).collect()
    };
    assert_eq!(bodies(&rig.backend), [b"first".to_vec()]);
    assert_eq!(bodies(&new_backend), [b"second".to_vec()]);
    assert_eq!(new_backend.received()[0].header("x-version"), Some("2"));
    rig.end();
}

#[test]
fn a_retry_that_waits_is_made_at_once_when_the_backends_change() {
    let hour = Duration::from_secs(3600);
    let mut rig =
        ModuleRig::start(1, |config| (config.retry.first_pause, config.retry.max_pause) = (hour, hour), |_| 500);
    let new_backend = TestBackend::start(|_| 200);
    rig.broker.put("t", 0, Some(b"k"), b"refused");
    rig.gain(0, 1, Some(0));
    let waits = "ktransfer_pushes_total{module=\"m\",outcome=\"refused\"} 1";
    wait_until("it was refused", || rig.metrics().contains(waits));
    let mut config = rig.live.config();
    config.backend_servers = vec![new_backend.server.clone()];
    rig.live.change(config);
    wait_until("the new backend has accepted it", || rig.commit_point(0) == Some(1));
    rig.end();
}
