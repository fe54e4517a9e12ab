//! Tests of the readings from ZooKeeper, with an ensemble in memory.

use super::reading::nobody;
use super::*;
use crate::keeper::Lifetime;
use crate::keeper::in_memory::InMemoryEnsemble;
use crate::kmonitor::readings::ModuleReading;
use std::collections::BTreeMap;
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

type Modules = BTreeMap<String, Result<Option<ModuleReading>, KeeperError>>;

/// What one cycle leaves to the next.
#[derive(Default)]
struct Kept {
    names: NameInterner,
    logged: LoggedOnce,
    listings: Listings,
    with_pauses: bool,
}

impl Kept {
    fn source<'a>(&'a mut self, keeper: &'a dyn Keeper) -> ZookeeperSource<'a> {
        let Kept { names, logged, listings, .. } = self;
        ZookeeperSource { keeper, names, logged, listings, request_count: 0 }
    }

    fn read(&mut self, keeper: &dyn Keeper) -> Modules {
        let groups = self.source(keeper).group_names().unwrap();
        let wanted = |name: &String| WantedModule {
            name: name.as_str().into(),
            with_topic_ids: true,
            with_pauses: self.with_pauses,
        };
        let mut reading = Reading::new(groups.iter().map(wanted).collect());
        let mut source = self.source(keeper);
        while !reading.is_done() {
            source.step(&mut reading, 3);
        }
        groups.into_iter().zip(reading.finish()).collect()
    }
}

fn read(keeper: &dyn Keeper) -> Modules {
    Kept::default().read(keeper)
}

fn stored(reading: &ModuleReading, topic: &str) -> Vec<(PartitionId, Stored)> {
    let places = &reading.topics[topic].places;
    places.iter().map(|(partition, place)| (*partition, place.stored.clone())).collect()
}

#[test]
fn every_group_with_offsets_or_owners_or_members_is_a_module() {
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
    put(&*keeper, "/consumers/starting/ids/one", "{}");
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
    assert_eq!(module("starting"), ModuleReading { members: Some(1), ..ModuleReading::default() });
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
fn what_operators_have_paused_is_read_where_it_is_wanted() {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    for topic in ["t", "u", "denied"] {
        put(&*keeper, &format!("/consumers/m/offsets/{topic}/0"), "5");
    }
    put(&*keeper, "/consumers/m/paused/t", r#"{"partitions":{"0":{"by":"ann","at_ms":7}}}"#);
    tree.refuse("/consumers/m/paused/denied");
    for with_pauses in [false, true] {
        let mut modules = Kept { with_pauses, ..Kept::default() }.read(&*keeper);
        let reading = modules.remove("m").unwrap().unwrap().unwrap();
        let is_paused = |topic: &str| reading.topics[topic].pauses.as_ref().map(|pauses| pauses.of(0).is_some());
        let expected = if with_pauses { [Some(true), Some(false), None] } else { [None; 3] };
        assert_eq!(["t", "u", "denied"].map(is_paused), expected);
        assert_eq!(stored(&reading, "denied"), [(0, Stored::Offset(5))]);
    }
}

#[test]
fn without_zookeeper_each_module_fails() {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    put(&*keeper, "/consumers/m/offsets/t/0", "1");
    tree.set_reachable(false);
    let mut kept = Kept::default();
    let mut source = kept.source(&*keeper);
    assert!(matches!(source.group_names(), Err(KeeperError::Unreachable(_))));
    let mut reading = Reading::new(vec![WantedModule { name: "m".into(), with_topic_ids: false, with_pauses: true }]);
    source.step(&mut reading, 100);
    assert!(reading.is_done());
    assert!(matches!(reading.finish()[..], [Err(KeeperError::Unreachable(_))]));
}

#[test]
fn lists_and_owners_that_cannot_have_changed_are_not_read_again() {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    for partition in 0..3 {
        put(&*keeper, &format!("/consumers/m/offsets/t/{partition}"), "5");
        put(&*keeper, &format!("/consumers/m/owners/t/{partition}"), "one");
    }
    put(&*keeper, "/consumers/m/ids/one", "{}");
    let mut kept = Kept::default();
    let owners = |modules: &Modules| {
        let places = &modules["m"].as_ref().unwrap().as_ref().unwrap().topics["t"].places;
        places.values().map(|place| place.owner.clone()).collect::<Vec<_>>()
    };
    let of = |name: &str| Owner::Named(name.into());
    let mut cycle = || {
        keeper.take_reads();
        let modules = kept.read(&*keeper);
        let reads = keeper.take_reads();
        let is_owner = |path: &&String| path.starts_with("/consumers/m/owners/t/");
        (owners(&modules), reads.iter().filter(is_owner).count(), reads.len(), modules)
    };
    // The module's three nodes, two of the topic, and offset, owner and ahead of each partition.
    assert_eq!((cycle().1, cycle().2), (3, 5 + 6));
    put(&*keeper, "/consumers/m/offsets/t/1", "6");
    let (found, owner_reads, _, modules) = cycle();
    assert_eq!((found, owner_reads), (vec![of("one"); 3], 0));
    assert_eq!(stored(modules["m"].as_ref().unwrap().as_ref().unwrap(), "t")[1], (1, Stored::Offset(6)));
    // An owner that is replaced, and one that goes.
    keeper.delete("/consumers/m/owners/t/1", 0).unwrap();
    put(&*keeper, "/consumers/m/owners/t/1", "two");
    assert_eq!(cycle().0, [of("one"), of("two"), of("one")]);
    keeper.delete("/consumers/m/owners/t/2", 0).unwrap();
    assert_eq!(cycle().0, [of("one"), of("two"), nobody()]);
    // A new partition, a new topic.
    put(&*keeper, "/consumers/m/offsets/t/3", "1");
    put(&*keeper, "/consumers/m/offsets/u/0", "1");
    let (_, owner_reads, _, modules) = cycle();
    let module = modules["m"].as_ref().unwrap().as_ref().unwrap();
    assert_eq!((owner_reads, stored(module, "t").len(), stored(module, "u").len()), (0, 4, 1));
    assert_eq!(module.members, Some(1));
}

#[test]
fn owners_and_members_that_may_not_be_read_are_unknown_and_not_absent() {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    for group in ["topic", "owners", "ids", "node"] {
        put(&*keeper, &format!("/consumers/{group}/offsets/t/0"), "5");
        put(&*keeper, &format!("/consumers/{group}/owners/t/0"), "one");
        put(&*keeper, &format!("/consumers/{group}/ids/one"), "{}");
    }
    let refused = ["topic/owners/t", "owners/owners", "ids/ids", "node/owners/t/0"];
    refused.iter().for_each(|path| tree.refuse(&format!("/consumers/{path}")));
    let mut kept = Kept::default();
    for _ in 0..2 {
        let modules = kept.read(&*keeper);
        let of = |name: &str| {
            let module = modules[name].as_ref().unwrap().as_ref().unwrap();
            (module.topics["t"].places[&0].owner.clone(), module.members)
        };
        assert_eq!(of("topic"), (Owner::Unknown, Some(1)));
        assert_eq!(of("owners"), (Owner::Unknown, Some(1)));
        assert_eq!(of("ids"), (Owner::Named("one".into()), None));
        assert_eq!(of("node"), (Owner::Unknown, Some(1)));
    }
}

#[test]
fn a_step_is_bounded_by_what_it_costs_the_server() {
    let wanted =
        |number: u32| WantedModule { name: number.to_string().into(), with_topic_ids: false, with_pauses: false };
    let mut reading = Reading::new((0..10).map(wanted).collect());
    assert_eq!(reading.take(25, 20).len(), 25);
    for module in 0..10 {
        let kind = ItemKind::Listing(Folder::Offsets, 1);
        reading.queue.push_back(Item { module, kind, path: "/".into() });
    }
    // 5 nodes are left. A list of children costs the server as much as 20 nodes that are read together.
    assert_eq!(reading.take(100, 20).len(), 5 + 5);
    assert_eq!(reading.take(1, 20).len(), 1, "progress is made with any bound");
    assert_eq!(reading.take(100, 1).len(), 4);
    assert!(reading.is_done());
}
