//! Tests of the readings from ZooKeeper, with an ensemble in memory.

use super::*;
use crate::keeper::Lifetime;
use crate::keeper::in_memory::InMemoryEnsemble;
use std::time::Duration;

/// Writes a node, after creating its missing parents.
pub(in crate::kmonitor) fn put(keeper: &dyn Keeper, path: &str, data: &str) {
    for (end, _) in path.match_indices('/').skip(1) {
        let _ = keeper.create(&path[..end], b"", Lifetime::Persistent);
    }
    match keeper.read(path).unwrap() {
        None => keeper.create(path, data.as_bytes(), Lifetime::Persistent).unwrap(),
        Some(node) => drop(keeper.write(path, data.as_bytes(), node.version).unwrap()),
    }
}

fn read(keeper: &dyn Keeper) -> BTreeMap<String, Result<Option<ModuleReading>, KeeperError>> {
    let (mut names, mut logged) = (NameInterner::default(), LoggedOnce::default());
    let mut source = ZookeeperSource { keeper, names: &mut names, logged: &mut logged, request_count: 0 };
    let groups = source.group_names().unwrap();
    let wanted = |name: &String| WantedModule { name: name.as_str().into(), with_topic_ids: true };
    let wanted: Vec<_> = groups.iter().map(wanted).collect();
    groups.into_iter().zip(source.modules(&wanted)).collect()
}

fn stored(reading: &ModuleReading, topic: &str) -> Vec<(PartitionId, Stored)> {
    let places = &reading.topics[topic].places;
    places.iter().map(|(partition, place)| (*partition, place.stored.clone())).collect()
}

#[test]
fn every_group_with_offsets_or_owners_is_a_module() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(6));
    assert_eq!(read(&*keeper), BTreeMap::new());
    put(&*keeper, "/consumers/m1/offsets/t/0", "12");
    put(&*keeper, "/consumers/m1/offsets/t/10", "0");
    put(&*keeper, "/consumers/m1/offsets/u/0", " 7\n");
    for skipped in ["t/x", "t/-1", "t/007", "a b/0", "../0"] {
        put(&*keeper, &format!("/consumers/m1/offsets/{skipped}"), "3");
    }
    put(&*keeper, "/consumers/m2/offsets/t/0", "-1");
    put(&*keeper, "/consumers/m2/offsets/t/1", "no number");
    put(&*keeper, "/consumers/m2/ids/one", "{}");
    put(&*keeper, "/consumers/owning/owners/t/3", "one-0");
    put(&*keeper, "/consumers/empty/offsets", "");
    put(&*keeper, "/consumers/never/ids", "");
    let modules = read(&*keeper);
    let module = |name: &str| modules[name].clone().unwrap().unwrap();
    let first = module("m1");
    assert_eq!(stored(&first, "t"), [(0, Stored::Offset(12)), (10, Stored::Offset(0))]);
    assert_eq!(stored(&first, "u"), [(0, Stored::Offset(7))]);
    assert_eq!((first.topics.len(), first.members), (2, None));
    assert_eq!(first.topics["t"].places[&0].owner, Owner::Unsupported);
    let second = module("m2");
    assert_eq!(stored(&second, "t"), [(0, Stored::Nothing), (1, Stored::Unreadable("no number".into()))]);
    assert_eq!((second.members, second.topics["t"].places[&0].owner.clone()), (Some(1), nobody()));
    let owning = module("owning");
    assert_eq!(owning.topics["t"].places[&3], PlaceReading::nothing(Owner::Named("one-0".into())));
    assert_eq!(module("empty"), ModuleReading::default());
    assert_eq!(modules["never"], Ok(None));
}

#[test]
fn a_node_that_may_not_be_read_hides_no_other() {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    for group in ["a", "b", "c"] {
        for node in ["t/0", "t/1", "u/0"] {
            put(&*keeper, &format!("/consumers/{group}/offsets/{node}"), "1");
        }
    }
    tree.refuse("/consumers/a/offsets");
    tree.refuse("/consumers/b/offsets/t/0");
    tree.refuse("/consumers/b/offsets/u");
    let modules = read(&*keeper);
    let module = |name: &str| modules[name].clone().unwrap().unwrap();
    assert!(module("a").refused.unwrap().contains("/consumers/a/offsets"));
    let b = module("b");
    assert!(matches!(&stored(&b, "t")[..], [(0, Stored::Refused(_)), (1, Stored::Offset(1))]), "{b:?}");
    assert!(b.topics["u"].refused.is_some() && b.refused.is_none());
    assert_eq!(stored(&module("c"), "t").len(), 2);
}

#[test]
fn the_log_of_an_offset_is_known_if_ktransfer_wrote_it_beside() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(6));
    let id = "000102030405060708090a0b0c0d0e0f";
    for (partition, offset) in [(0, 7), (1, 8)] {
        put(&*keeper, &format!("/consumers/m/offsets/t/{partition}"), "7");
        let ahead = format!(r#"{{"version":1,"offset_version":3,"offset":{offset},"topic_id":"{id}","done":""}}"#);
        put(&*keeper, &format!("/consumers/m/ahead/t/{partition}"), &ahead);
    }
    put(&*keeper, "/consumers/m/offsets/t/2", "7");
    put(&*keeper, "/consumers/m/ahead/t/2", "{}");
    let module = read(&*keeper)["m"].clone().unwrap().unwrap();
    let ids: Vec<_> = module.topics["t"].places.values().map(|place| place.topic_id).collect();
    let expected: TopicId = std::array::from_fn(|index| index as u8);
    assert_eq!(ids, [Some(expected), None, None], "another offset was written meanwhile, or no id");
}

#[test]
fn without_zookeeper_each_module_fails() {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    put(&*keeper, "/consumers/m/offsets/t/0", "1");
    tree.set_reachable(false);
    let (mut names, mut logged) = (NameInterner::default(), LoggedOnce::default());
    let mut source = ZookeeperSource { keeper: &*keeper, names: &mut names, logged: &mut logged, request_count: 0 };
    assert!(matches!(source.group_names(), Err(KeeperError::Unreachable(_))));
    let wanted = [WantedModule { name: "m".into(), with_topic_ids: false }];
    assert!(matches!(source.modules(&wanted)[..], [Err(KeeperError::Unreachable(_))]));
}
