"""The attack engine. Import it as `robust_nc.attacks`.

>>> from robust_nc.attacks.pgd import PGD
>>> PGD(steps=10).steps
10
"""

if __name__ != "robust_nc.attacks":
    raise ImportError("import robust_nc.attacks, not attacks: its classes would exist twice")
