"""Who takes part: what flags and schedulers say, and what is not enough."""

from __future__ import annotations

import pytest

from zaya_jax.cluster import Member, find, first_node, share, visible_gpus
from zaya_jax.errors import UserError


def no_gpus(environment) -> int:
    return 0


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-009,12],login",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
KUBERNETES = {
    "JAX_COORDINATOR_ADDRESS": "zaya-workers-0-0.zaya:14579",
    "JAX_NUM_PROCESSES": "16",
    "JOB_COMPLETION_INDEX": "15",
}


def test_alone_unless_something_says_otherwise():
    assert find({}) is None
    assert find({}, processes=1) is None
    assert find({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    # In a batch script, before srun: it is not one of the job's tasks.
    assert find({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None


def test_flags_go_before_all_others():
    found = find(SLURM | KUBERNETES, "host:1234", 2, 1, gpus=no_gpus)
    assert found == Member("host:1234", 2, 1, None, "the flags")


def test_slurm():
    assert find(SLURM, gpus=no_gpus) == Member("gpu007:14580", 8, 5, None, "SLURM")
    assert find(SLURM, gpus=lambda _: 8).devices == (4, 5, 6, 7)
    # The scheduler shows each task its own GPU.
    bound = SLURM | {"ROCR_VISIBLE_DEVICES": "5"}
    assert find(bound).devices is None


def test_open_mpi_names_the_host_of_mpirun():
    found = find(OPEN_MPI, gpus=no_gpus)
    assert found.coordinator.startswith("10.96.0.1:") and (found.count, found.index) == (4, 3)


def test_a_coordinator_that_is_named_goes_before_the_one_found():
    assert find(OPEN_MPI, "node1:99", gpus=no_gpus).coordinator == "node1:99"
    named = SLURM | {"JAX_COORDINATOR_ADDRESS": "node2:98"}
    assert find(named, gpus=no_gpus).coordinator == "node2:98"


def test_processes_of_mpi_on_one_machine_need_no_coordinator():
    here = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
    assert find(here, gpus=no_gpus).coordinator.startswith("localhost:")
    both = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert find(both, gpus=no_gpus).coordinator.startswith("localhost:")


def test_kubernetes():
    found = find(KUBERNETES, gpus=no_gpus)
    assert found == Member("zaya-workers-0-0.zaya:14579", 16, 15, None, "JAX_NUM_PROCESSES")


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, {"coordinator": "h:1"}, "--processes=N, --process_id=I missing"),
        ({}, {"processes": 2, "process_id": 1}, "--coordinator=HOST:PORT missing"),
        ({}, {"coordinator": "h:1", "processes": 2}, "--process_id=I missing"),
        ({}, {"coordinator": "h:1", "processes": 2, "process_id": 2}, "process 2 of 2"),
        ({}, {"coordinator": "h", "processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({}, {"coordinator": "http://h:1", "processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, {}, r"\(PMI\): --coordinator=HOST:PORT missing"),
        ({**SLURM, "SLURM_PROCID": "x"}, {}, "SLURM_PROCID = 'x'"),
        ({"JAX_NUM_PROCESSES": "3"}, {}, "--coordinator=HOST:PORT, --process_id=I missing"),
    ],
)
def test_what_is_not_enough_is_told(environment, flags, message):
    with pytest.raises(UserError, match=message):
        find(environment, **flags, gpus=no_gpus)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,other", "node1"),
        ("node[001-015],other", "node001"),
        ("node[001,007-015]", "node001"),
        ("rack[3-4]-gpu", "rack3-gpu"),
        ("a-b[07]", "a-b07"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_processes_of_a_machine_share_its_gpus():
    assert [share(i, 4, 8) for i in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert share(0, 1, 8) is None and share(1, 2, 0) is None and share(3, 8, 1) is None
    with pytest.raises(UserError, match="3 processes share a machine on which they see 8 GPUs"):
        share(0, 3, 8)


def test_gpus_are_counted_without_jax(tmp_path):
    assert visible_gpus({"HIP_VISIBLE_DEVICES": "0,1,5"}, tmp_path) == 3
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert visible_gpus({}, tmp_path) == 0
    for node, units in enumerate([0, 0, 304, 304]):  # two CPUs, two MI300X
        folder = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}"
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\n")
    assert visible_gpus({}, tmp_path) == 2
    assert visible_gpus({"JAX_PLATFORMS": "cpu"}, tmp_path) == 0
