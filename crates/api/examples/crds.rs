//! tmp
fn main() {
    let l = serde_json::json!({"apiVersion":"v1","kind":"List","items":conme_api::crds()});
    println!("{}", l);
}
