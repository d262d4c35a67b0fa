from train.report.run_summary import summary


def record(step, *, loss=2.5, images_per_second, data_wait_share):
  return {
    "step": step,
    "kind": "train",
    "loss": loss,
    "images_per_second": images_per_second,
    "data_wait_share": data_wait_share,
  }


def evaluation(step, top1, **changes):
  return {"step": step, "kind": "evaluation", "loss": 1.5, "top1": top1, "ema": False, **changes}


def test_summary_tells_last_and_best():
  records = [
    record(100, images_per_second=1.0, data_wait_share=0.5),
    evaluation(100, 0.9),
    record(200, images_per_second=50.0, data_wait_share=0.1),
    record(300, loss=0.5, images_per_second=60.0, data_wait_share=0.0),
    evaluation(300, 0.8, top5=0.95),
    evaluation(300, 0.7, ema=True, loss=1.25),
  ]
  assert summary(records, {"name": "demo"}).splitlines()[1:-1] == [
    "name                                 demo",
    "steps                                300",
    "last training loss                   0.5000",
    "median images/s                      50",
    "mean share of time waiting for data  20.0 %",
    "held-out loss, parameters            1.5000",
    "held-out top-1, parameters           80.00 % (best 90.00 % at step 100)",
    "held-out top-5, parameters           95.00 %",
    "held-out loss, moving average        1.2500",
    "held-out top-1, moving average       70.00 % (best 70.00 % at step 300)",
  ]


def test_summary_of_nothing_is_just_what_is_given():
  assert "demo" in summary([], {"name": "demo"})
