//! The quickstart, with a tiny model: every strategy that an operator can serve.

use fedllm_models::{BlockFormat, PeftAdapter};
use fedllm_tests::federation::{Programs, text};
use fedllm_tests::tiny;
use serde_json::Value;

use super::programs;

fn quickstart(programs: &Programs, strategy: &str) -> Value {
    let model = programs.path("model.gguf");
    if !model.exists() {
        tiny::write_gguf(&model, "llama", BlockFormat::F32);
    }
    let (out, json) = (
        programs.path(strategy),
        programs.path(&format!("{strategy}.json")),
    );
    let args = ["quickstart", "--quick", "--device", "cpu", "--model"];
    let args = [&args[..], &[text(&model), "--strategy", strategy]].concat();
    let args = [&args[..], &["--out", text(&out), "--json", text(&json)]].concat();
    programs.server(&args).ok();
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn the_quickstart_compares_a_federation_with_its_owners() {
    let programs = programs();
    for strategy in ["scaffold", "fedadam"] {
        let report = quickstart(&programs, strategy);
        assert!(report["federated"]["loss"].is_number(), "{report}");
        assert_eq!(report["local"].as_array().unwrap().len(), 3, "{report}");
        assert_eq!(report["rounds"][0]["updates"], 3, "{report}");
        let adapter = report["adapter"].as_str().unwrap();
        assert!(PeftAdapter::read(adapter.as_ref()).is_ok());
    }
}

#[test]
fn a_quickstart_of_owners_alone_has_no_federated_adapter() {
    let programs = programs();
    let report = quickstart(&programs, "local");
    assert!(report["federated"].is_null(), "{report}");
    let losses = report["local"].as_array().unwrap().iter();
    let losses: Vec<f64> = losses.map(|own| own["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 3);
    assert!(losses[0] != losses[1] && losses[1] != losses[2], "{report}");
    for owner in ["harbour", "seeds", "workshop"] {
        let adapter = programs.path("local").join("adapters").join(owner);
        assert!(PeftAdapter::read(&adapter).is_ok(), "{owner}");
    }
}
