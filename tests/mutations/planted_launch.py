"""Mistakes in how a run is started on SLURM, on SageMaker, and by other launchers; see planted.py."""

ENTRY = [
    ("the run writes where it is told", "    check_options(given)\n", ""),
    ("only whole words are taken", '.partition("=")[0]', ""),
    ("a job that starts again begins anew", '        found.append("--resume")', "        pass"),
    ("a job that never saved is resumed", 'glob("checkpoints/step-*")', 'glob("checkpoints")'),
    ("the validation data is trained on", '("TRAIN", "train_dataset_id_or_path"), ("VAL", "test_dataset_id_or_path")',
     '("VAL", "train_dataset_id_or_path"), ("TRAIN", "test_dataset_id_or_path")'),
    ("one of several files is taken", "if len(files) != 1:", "if not files:"),
    ("options of several words fall apart", "shlex.split(argv[1])", "argv[1].split()"),
    ("no weights are handed over", 'RESULTS = ("adapter", "model", ', "RESULTS = ("),
    ("a model that is trained whole is left behind", '"adapter", "model", "summary', '"adapter", "summary'),
    ("nothing is handed over", "        hand_over(os.environ)", "        pass"),
]

FOREIGN = [
    ("a note on each start by deepspeed", '"local_rank": (-1, 0),', '"local_rank": -1,'),
]

JOB = [
    ("the token is left behind", 'PASSED = ("HF_TOKEN", ', "PASSED = ("),
    ("tests and results are put on S3", '"outputs", "tests", "benchmarks", ', ""),
    ("a warm pool of spot machines", "    elif given.keep_alive:", "    if given.keep_alive:"),
    ("a spot job never waits", 'times["max_wait_time_in_seconds"] = 2 * given.max_runtime', "pass"),
    ("all jobs have one folder of checkpoints", "s3_uri=given.checkpoints,",
     's3_uri=given.checkpoints or f"s3://{given.bucket}/checkpoints",'),
    ("a bucket that is not there is found out later", "        session.client(\"s3\").head_bucket(Bucket=given.bucket)",
     "        pass"),
    ("a gated model is found out by the job", "if error.code in (401, 403):", "if False:"),
    ("the ranks of one machine", "gpus = given.nproc_per_node * given.instance_count", "gpus = 1"),
    ("options are lost", 'hyperparameters={"options": shlex.join(rest)} if rest else {}', "hyperparameters={}"),
]

# The copy that these are planted in has no environment with the SDK.
NEEDS_SDK = "caught where SAGEMAKER_PYTHON is a Python with the SDK and moto; else its tests are skipped"

BATCH = [
    ("a job that starts again begins anew", "    options+=(--resume)", "    :"),
    ("all jobs have one port", "$((20000 + SLURM_JOB_ID % 10000))", "29500"),
    ("pre-emption is not heard", "trap 'asked=yes' USR1 TERM", "trap 'asked=yes' USR1"),
    ("a run that failed is put back into the queue", "if [[ $asked && ", "if [[ "),
    ("a run at its end is put back", " && ! -e $output_dir/summary.json", ""),
    ("a cancelled job is put back", ' && $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING*', ""),
    ("a run that failed is a success", 'exit "$code"', "exit 0"),
    ("the nodes are not told", '    kill -USR1 "$step"', "    :"),
]

NODE = [
    ("torchrun dies of the signal", "trap '' USR1; exec", "exec"),
    ("torchrun itself is told", 'pkill -USR1 --parent "$torchrun"', 'kill -TERM "$torchrun"'),
    ("one rank a node", "${SLURM_GPUS_ON_NODE:-1}", "1"),
]

LAUNCH_GROUPS = [
    ("recipes/launch/slurm.sbatch", ("test_slurm.py",), BATCH),
    ("recipes/launch/slurm_node.sh", ("test_slurm.py",), NODE),
    ("recipes/launch/sagemaker_entry.py", ("test_sagemaker_entry.py",), ENTRY),
    ("grpo/options/foreign.py", ("test_launchers.py",), FOREIGN),
    ("recipes/launch/sagemaker_job.py", ("test_sagemaker_job.py",), [(*row, NEEDS_SDK) for row in JOB]),
]
