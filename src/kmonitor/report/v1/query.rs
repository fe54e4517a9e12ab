//! The parameters of `/v1/delay`: parsing, and which modules they select.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::kmonitor::facts::Verdict;
use crate::kmonitor::query::decoded;
use crate::kmonitor::view::{ClusterView, ModuleView};

use super::order::{Cursor, Order, Partitions};

/// Largest number of modules in one answer.
pub(super) const MAX_MODULES: usize = 1_000;

/// Largest number of globs in one parameter; each costs time to compile.
const MAX_GLOBS: usize = 64;

/// Longest glob, in bytes. No name in Kafka or ZooKeeper that one would type is longer.
const MAX_GLOB_BYTES: usize = 300;

/// All parameters, for error texts.
const KNOWN: &str =
    "cluster, module, topic, verdict, min_delay, min_seconds, partitions, history, order, limit and after";

/// What a request selects.
#[derive(Debug)]
pub(super) struct Query {
    cluster: Names,
    module: Names,
    topic: Names,
    /// One bit for each verdict.
    verdicts: u8,
    min_delay: u64,
    min_seconds: f64,
    pub(super) partitions: Partitions,
    pub(super) with_history: bool,
    pub(super) order: Order,
    pub(super) limit: usize,
    pub(super) after: Option<Cursor>,
}

/// Globs of which one must match; without any, every name does.
#[derive(Debug, Default)]
struct Names {
    globs: Vec<String>,
    set: Option<GlobSet>,
}

impl Default for Query {
    fn default() -> Self {
        Query {
            cluster: Names::default(),
            module: Names::default(),
            topic: Names::default(),
            verdicts: all_verdicts(),
            min_delay: 0,
            min_seconds: 0.0,
            partitions: Partitions::Bad,
            with_history: false,
            order: Order::Worst,
            limit: MAX_MODULES,
            after: None,
        }
    }
}

impl Query {
    /// Parses a query string, which may be empty. An unknown parameter is an error, so that a misspelt one does not
    /// silently select everything. A parameter without a value is ignored.
    pub(super) fn parse(text: &str) -> Result<Query, String> {
        let mut query = Query::default();
        let mut seen = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            query.set(&name, value)?;
            if !["cluster", "module", "topic"].contains(&&*name) {
                if seen.contains(&name) {
                    return Err(format!("duplicate parameter {name:?}"));
                }
                seen.push(name);
            }
        }
        for names in [&mut query.cluster, &mut query.module, &mut query.topic] {
            names.compile()?;
        }
        match &query.after {
            Some(after) if after.order() != query.order => Err("after is of a request with another order".to_owned()),
            _ => Ok(query),
        }
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let given = (!value.is_empty()).then_some(value);
        match name {
            "cluster" => self.cluster.globs.extend(given),
            "module" => self.module.globs.extend(given),
            "topic" => self.topic.globs.extend(given),
            "verdict" => self.verdicts = given.map_or(Ok(all_verdicts()), |list| verdicts(&list))?,
            "min_delay" => self.min_delay = given.map_or(Ok(0), |text| whole(name, &text, 0..=u64::MAX))?,
            "min_seconds" => self.min_seconds = given.map_or(Ok(0.0), |text| seconds(name, &text))?,
            "partitions" => {
                let choices = [("bad", Partitions::Bad), ("all", Partitions::All), ("none", Partitions::None)];
                self.partitions = given.map_or(Ok(Partitions::Bad), |text| choice(name, &text, &choices))?;
            }
            "history" => {
                let choices = [("1", true), ("0", false)];
                self.with_history = given.map_or(Ok(false), |text| choice(name, &text, &choices))?;
            }
            "order" => {
                let choices = [("worst", Order::Worst), ("name", Order::Name)];
                self.order = given.map_or(Ok(Order::Worst), |text| choice(name, &text, &choices))?;
            }
            "limit" => {
                let max = MAX_MODULES as u64;
                let limit = given.map_or(Ok(max), |text| whole(name, &text, 1..=max))?;
                self.limit = usize::try_from(limit).unwrap_or(MAX_MODULES);
            }
            "after" => self.after = given.map(|text| Cursor::parse(&text)).transpose()?,
            _ => return Err(format!("unknown parameter {name:?}: there are {KNOWN}")),
        }
        Ok(())
    }

    /// Returns whether the cluster is in the answer.
    pub(super) fn has_cluster(&self, cluster: &ClusterView) -> bool {
        self.cluster.match_name(&cluster.name)
    }

    /// Returns whether the module is selected. An unknown delay is at least 0 and no more.
    pub(super) fn has_module(&self, module: &ModuleView) -> bool {
        self.verdicts & bit(module.verdict) != 0
            && self.min_delay <= module.delay.unwrap_or(0)
            && self.min_seconds <= module.seconds_behind.unwrap_or(0.0)
            && self.module.match_name(&module.name)
            && self.topic.match_name(&module.topic)
    }
}

impl Names {
    fn compile(&mut self) -> Result<(), String> {
        if self.globs.is_empty() {
            return Ok(());
        }
        if MAX_GLOBS < self.globs.len() {
            return Err(format!("more than {MAX_GLOBS} globs in one parameter"));
        }
        let mut set = GlobSetBuilder::new();
        for glob in &self.globs {
            if MAX_GLOB_BYTES < glob.len() {
                return Err(format!("a glob is longer than {MAX_GLOB_BYTES} bytes"));
            }
            set.add(GlobBuilder::new(glob).build().map_err(|cause| format!("bad glob {glob:?}: {}", cause.kind()))?);
        }
        self.set = Some(set.build().map_err(|cause| format!("bad glob: {cause}"))?);
        Ok(())
    }

    fn match_name(&self, name: &str) -> bool {
        self.set.as_ref().is_none_or(|set| set.is_match(name))
    }
}

fn bit(verdict: Verdict) -> u8 {
    1 << verdict.severity()
}

fn all_verdicts() -> u8 {
    Verdict::ALL.into_iter().map(bit).sum()
}

/// Parses `STOPPED,STALLED`, or `!OK` for all others.
fn verdicts(list: &str) -> Result<u8, String> {
    let (mut wanted, mut unwanted) = (0, 0);
    for word in list.split(',').map(str::trim) {
        let (negated, word) = word.strip_prefix('!').map_or((false, word), |word| (true, word));
        let words = Verdict::ALL.map(Verdict::word).join(", ");
        let verdict = Verdict::parse(word).ok_or_else(|| format!("verdict has {word:?}, but there are {words}"))?;
        *(if negated { &mut unwanted } else { &mut wanted }) |= bit(verdict);
    }
    Ok((if wanted == 0 { all_verdicts() } else { wanted }) & !unwanted)
}

fn whole(name: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && range.contains(number));
    number.ok_or_else(|| {
        format!("{name} is {text:?}, but must be a whole number from {} to {}", range.start(), range.end())
    })
}

fn seconds(name: &str, text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && 0.0 <= *number);
    number.ok_or_else(|| format!("{name} is {text:?}, but must be a number of seconds"))
}

fn choice<T: Copy>(name: &str, text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    let words = || choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
    found.ok_or_else(|| format!("{name} is {text:?}, but must be {}", words()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition};

    fn module_of(name: &str, topic: &str, verdict: Verdict, delay: Option<u64>, seconds: Option<f64>) -> ModuleView {
        ModuleView { verdict, delay, seconds_behind: seconds, ..module(name, topic, vec![partition(0, delay)]) }
    }

    #[test]
    fn each_parameter_selects() {
        let modules = [
            module_of("copy", "a", Verdict::Ok, Some(0), Some(0.0)),
            module_of("copy", "b", Verdict::Stopped, Some(1_204), Some(90.2)),
            module_of("mail", "b", Verdict::Lagging, Some(50), Some(240.0)),
            module_of("[odd]", "c", Verdict::Unknown, None, None),
        ];
        for (query, selected) in [
            ("", vec![0, 1, 2, 3]),
            ("module=copy", vec![0, 1]),
            ("module=c*&module=mail", vec![0, 1, 2]),
            ("module=%5B%5B%5Dodd%5D", vec![3]),
            ("module=cop", vec![]),
            ("module=", vec![0, 1, 2, 3]),
            ("topic=%7Ba,c%7D", vec![0, 3]),
            ("topic=?&module=*y", vec![0, 1]),
            ("verdict=STOPPED,unknown", vec![1, 3]),
            ("verdict=!OK", vec![1, 2, 3]),
            ("verdict=!OK,!UNKNOWN", vec![1, 2]),
            ("verdict=OK,LAGGING,!OK", vec![2]),
            ("min_delay=50", vec![1, 2]),
            ("min_delay=51", vec![1]),
            ("min_seconds=90.2", vec![1, 2]),
            ("min_seconds=1e2", vec![2]),
            ("verdict=!OK&min_delay=0&partitions=all&history=1&order=name&limit=7", vec![1, 2, 3]),
        ] {
            let parsed = Query::parse(query).unwrap_or_else(|reason| panic!("{query}: {reason}"));
            let found: Vec<_> = (0..modules.len()).filter(|index| parsed.has_module(&modules[*index])).collect();
            assert_eq!(found, selected, "{query}");
        }
        let query = Query::parse("cluster=te*").unwrap();
        assert!(query.has_cluster(&cluster("test", vec![])) && !query.has_cluster(&cluster("live", vec![])));
    }

    #[test]
    fn a_bad_parameter_is_named() {
        for (query, reason) in [
            ("modul=x", "unknown parameter \"modul\": there are cluster, module, topic, verdict, "),
            ("verdict=BAD", "verdict has \"BAD\", but there are OK, LAGGING, UNKNOWN, REWOUND, STALLED, STOPPED"),
            ("verdict=OK,", "verdict has \"\""),
            ("min_delay=-1", "min_delay is \"-1\", but must be a whole number from 0 to 18446744073709551615"),
            ("min_delay=%2B1", "min_delay is \"+1\""),
            ("min_seconds=nan", "min_seconds is \"nan\", but must be a number of seconds"),
            ("min_seconds=-1", "min_seconds"),
            ("partitions=some", "partitions is \"some\", but must be bad or all or none"),
            ("history=yes", "history is \"yes\", but must be 1 or 0"),
            ("order=delay", "order is \"delay\", but must be worst or name"),
            ("limit=0", "limit is \"0\", but must be a whole number from 1 to 1000"),
            ("limit=1001", "limit"),
            ("limit=5&limit=6", "duplicate parameter \"limit\""),
            ("after=xyz", "after is \"xyz\", which is no `next` of an answer"),
            ("module=%5B", "bad glob \"[\": "),
            ("module=%zz", "invalid percent-encoding in \"%zz\""),
            ("module=%ff", "\"%ff\" does not decode to UTF-8"),
        ] {
            let refused = Query::parse(query).err().unwrap_or_else(|| panic!("{query} is accepted"));
            assert!(refused.starts_with(reason), "{query}: {refused}");
        }
        let long = format!("module={}", "x".repeat(MAX_GLOB_BYTES + 1));
        assert!(Query::parse(&long).unwrap_err().contains("longer than 300 bytes"));
        assert!(Query::parse(&"topic=x&".repeat(MAX_GLOBS + 1)).unwrap_err().contains("more than 64 globs"));
    }
}
