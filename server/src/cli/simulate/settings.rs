//! Keys of an experiment on the command line: changed, or swept over.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use fedllm_shared::StrategyKind;
use toml::{Table, Value};

use crate::evaluate::Data;

/// Short names of keys that are often changed.
const SHORT: [(&str, &str); 9] = [
    ("strategy", "strategy.name"),
    ("compat", "strategy.compat"),
    ("reduce", "strategy.reduce"),
    ("seed", "experiment.seed"),
    ("rounds", "rounds.count"),
    ("clients", "split.clients"),
    ("alpha", "split.alpha"),
    ("split", "split.kind"),
    ("lr", "local.lr"),
];

/// The name of the baseline that trains one owner of all rows.
const CENTRAL: &str = "central";

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    section: String,
    key: String,
    /// The value, as it was written.
    pub(super) value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected KEY=VALUE, as in strategy.name=fedprox, got {text:?}");
        let (path, value) = text.split_once('=').ok_or_else(wrong)?;
        let path = path.trim();
        let short = SHORT.iter().find(|(short, _)| *short == path);
        let path = short.map_or(path, |(_, path)| path);
        let (section, key) = path.split_once('.').ok_or_else(wrong)?;
        Ok(Self {
            section: section.to_owned(),
            key: key.to_owned(),
            value: value.trim().to_owned(),
        })
    }
}

impl Setting {
    /// The key as people write it.
    pub(super) fn short(&self) -> &str {
        let path = format!("{}.{}", self.section, self.key);
        let short = SHORT.iter().find(|(_, long)| *long == path);
        short.map_or(self.key.as_str(), |(short, _)| short)
    }

    /// Sets the key.
    pub(super) fn apply(&self, table: &mut Table) {
        if self.short() == "strategy" && self.value == CENTRAL {
            set(table, "split", "kind", CENTRAL.into());
            set(
                table,
                "strategy",
                "name",
                StrategyKind::FedAvg.name().into(),
            );
            return;
        }
        set(table, &self.section, &self.key, value(&self.value));
    }
}

fn set(table: &mut Table, section: &str, key: &str, value: Value) {
    let section = table.entry(section).or_insert_with(|| Table::new().into());
    if let Some(section) = section.as_table_mut() {
        section.insert(key.to_owned(), value);
    }
}

/// A value as TOML has it; what is none is a text.
fn value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("v = {text}"));
    let parsed = parsed.ok().and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| text.into())
}

/// A key and the values that a sweep gives it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Swept(Vec<Setting>);

impl FromStr for Swept {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text
            .split_once('=')
            .filter(|(_, values)| !values.is_empty())
            .ok_or_else(|| format!("expected KEY=V1,V2, as in seed=1,2,3, got {text:?}"))?;
        let settings = values
            .split(',')
            .map(|value| format!("{key}={value}").parse());
        Ok(Self(settings.collect::<Result<_, _>>()?))
    }
}

/// Every combination; the key that was named last changes fastest.
pub(super) fn grid(swept: &[Swept]) -> Vec<Vec<Setting>> {
    swept.iter().fold(vec![Vec::new()], |arms, Swept(values)| {
        let with = |arm: Vec<Setting>| {
            let values = values.iter().cloned();
            values.map(move |value| arm.iter().cloned().chain([value]).collect())
        };
        arms.into_iter().flat_map(with).collect()
    })
}

/// What a combination is called.
pub(super) fn label(arm: &[Setting]) -> String {
    let pairs = arm.iter().map(|s| format!("{}={}", s.short(), s.value));
    pairs.collect::<Vec<_>>().join(",")
}

/// Leaves out parameters that the strategy does not have.
pub(super) fn drop_foreign_parameters(table: &mut Table) {
    let Some(strategy) = table.get_mut("strategy").and_then(Value::as_table_mut) else {
        return;
    };
    let name = strategy.get("name").and_then(Value::as_str);
    let Ok(kind) = name.unwrap_or("fedavg").parse::<StrategyKind>() else {
        return;
    };
    let own = |name: &str| kind.parameters().iter().any(|own| own.name == name);
    let all = StrategyKind::ALL.iter().flat_map(|kind| kind.parameters());
    for parameter in all.filter(|parameter| !own(parameter.name)) {
        strategy.remove(parameter.name);
    }
}

/// Makes the paths of an experiment hold from everywhere: they are relative to its folder.
pub(super) fn absolute_paths(table: &mut Table, folder: &Path) -> std::io::Result<()> {
    let folder = std::path::absolute(folder)?;
    let join = |value: &mut Value| {
        if let Some(path) = value.as_str() {
            *value = folder.join(path).to_string_lossy().into_owned().into();
        }
    };
    for (section, key) in [
        ("data", "path"),
        ("data", "held_out_path"),
        ("model", "path"),
        ("adapter", "start"),
    ] {
        let section = table.get_mut(section).and_then(Value::as_table_mut);
        match section.and_then(|section| section.get_mut(key)) {
            Some(Value::Array(paths)) => paths.iter_mut().for_each(join),
            Some(path) => join(path),
            None => {}
        }
    }
    let evaluation = table.get_mut("evaluation").and_then(Value::as_table_mut);
    let data = evaluation.and_then(|evaluation| evaluation.get_mut("data"));
    for value in data.and_then(Value::as_array_mut).into_iter().flatten() {
        let data = value.as_str().map(str::parse::<Data>);
        if let Some(Ok(Data { task, path })) = data {
            let path = folder.join(path).to_string_lossy().into_owned();
            *value = match task {
                Some(task) => format!("{task}={path}").into(),
                None => path.into(),
            };
        }
    }
    Ok(())
}

/// Reads rows from elsewhere.
pub(super) fn set_data(table: &mut Table, paths: &[PathBuf]) -> std::io::Result<()> {
    let mut absolute = Vec::new();
    for path in paths {
        let path = std::path::absolute(path)?;
        absolute.push(Value::from(path.to_string_lossy().into_owned()));
    }
    set(table, "data", "path", absolute.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_every_combination() {
        let swept = ["strategy=fedavg,central", "seed=1,2"].map(|text| text.parse().unwrap());
        let arms = grid(&swept);
        let labels: Vec<_> = arms.iter().map(|arm| label(arm)).collect();
        assert_eq!(
            labels,
            [
                "strategy=fedavg,seed=1",
                "strategy=fedavg,seed=2",
                "strategy=central,seed=1",
                "strategy=central,seed=2"
            ]
        );
        assert!("seed=".parse::<Swept>().is_err());
        assert!("sed=1".parse::<Swept>().is_err());
    }

    #[test]
    fn settings_are_written_as_toml_or_text() {
        let mut table = Table::new();
        for text in [
            "split.alpha=0.3",
            "strategy=fedprox",
            "strategy.mu=0.5",
            "data.path=[\"a\"]",
            "evaluation.data=[\"b\", \"mmlu=c\"]",
        ] {
            text.parse::<Setting>().unwrap().apply(&mut table);
        }
        assert_eq!(table["split"]["alpha"].as_float(), Some(0.3));
        assert_eq!(table["strategy"]["name"].as_str(), Some("fedprox"));
        drop_foreign_parameters(&mut table);
        assert_eq!(table["strategy"]["mu"].as_float(), Some(0.5));
        "strategy=central"
            .parse::<Setting>()
            .unwrap()
            .apply(&mut table);
        drop_foreign_parameters(&mut table);
        assert!(table["strategy"].get("mu").is_none());
        assert_eq!(table["split"]["kind"].as_str(), Some("central"));
        absolute_paths(&mut table, Path::new("/exp")).unwrap();
        assert_eq!(table["data"]["path"][0].as_str(), Some("/exp/a"));
        let data = &table["evaluation"]["data"];
        assert_eq!(data[0].as_str(), Some("/exp/b"));
        assert_eq!(data[1].as_str(), Some("mmlu=/exp/c"));
    }
}
