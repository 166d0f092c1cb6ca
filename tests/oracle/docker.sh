# The tutorials' commands on containers, in their order.
## tutorials
docker version --format '{{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}'
docker info --format '{{.Driver}} {{.LoggingDriver}} {{.OSType}} {{.Containers}}'
docker run --name hello debian echo hello
docker run --rm debian sh -c 'echo out; sleep .1; echo err >&2; exit 3'
docker run -d --name web -p 0.0.0.0:8088:80 -h myhost debian sh -c 'echo started; sleep 1000'
docker ps
docker ps -a --format '{{.Names}} {{.Image}} {{.Command}} {{.Status}} {{.Ports}}' -f name=web
docker ps -q
docker ps -l
docker ps -n 1
docker ps --no-trunc
docker ps -s
docker ps -a -f status=exited
docker port web
docker port web 80
docker port web 81
docker run --rm -d --name both -p 8089:80 debian sleep 100
docker port both
docker rm -f both
docker logs web
docker logs -t --tail 1 web
docker top web -o pid,comm | sed 's,^[0-9]* *,,'
docker exec web hostname
docker exec web sh -c 'exit 9'
docker exec -u web -w /tmp -e A=1 web sh -c 'id; pwd; echo $A'
docker exec web nope
docker exec web /etc/passwd
docker exec nope true
docker inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}} {{.Config.Hostname}}' web
docker inspect web | grep -c IPAddress
docker inspect nope
docker diff web
docker exec web touch /etc/test.conf
docker diff web
docker cp web:/etc/passwd passwd
docker cp web:/nope passwd
docker cp passwd web:/tmp/copied
docker exec web cat /tmp/copied
docker cp passwd web:/nope/copied
docker cp web:/etc/passwd - | tar t
docker pause web
docker ps
docker exec web true
docker unpause web
docker rename web web2
docker update --memory 64m --memory-swap 128m web2
docker update --restart always web2
docker stop -t 0 web2
docker ps -a
docker start web2
docker start nope
docker restart -t 0 web2
docker kill web2
docker kill web2
docker wait web2
docker rm web2
docker rm web2
docker rm -f web2
docker stop nope nope2
docker run -d -P --expose 5000 --name pp -v $PWD/hostdir:/d:rw debian sh -c 'echo in > /d/file; echo done; exec sleep 1000'
docker port pp | sed 's,:[0-9]*$,,'
docker logs pp
docker exec pp cat /d/file
docker exec -d pp touch /d/detached
script -qec "docker exec -it pp sh -c 'hostname | wc -c; tty; exit 5'" /dev/null | tr -d '^@'
script -qec "docker run -i -t -h box --name tt debian sh -c 'hostname; echo err >&2; exit 4'" /dev/null | tr -d '^@'
docker logs tt | tr -d '^@'
docker start -a tt
docker ps -all --format '{{.Names}} {{.Status}}'
docker export tt | tar t | grep -c bin/
docker run -d --name brief debian sh -c 'sleep 1; echo brief; exit 6'
docker logs -f brief
docker wait brief
docker run -d --name watched debian sh -c 'sleep 2; echo attached; exit 7'
docker attach watched
docker run --rm --network container:pp debian hostname
docker run --rm --network container:pp --hostname x debian true
docker stats --no-stream --format '{{.Name}} {{.PIDs}}' pp
docker container restart -t 0 pp
docker container inspect -f '{{.State.Running}} {{.RestartCount}} {{.Config.Hostname | len}}' pp
docker events --since 1h --until 0s --filter container=watched --format '{{.Type}} {{.Action}}'
docker system df --format '{{.Type}} {{.TotalCount}} {{.Active}}' | grep Containers
docker container stop -t 0 $(docker ps -q) | wc -l
docker rm -v $(docker ps -aq) | wc -l
docker ps -a
docker run --privileged=true --rm debian sh -c 'test -e /dev/kmsg && echo privileged'
docker container run --rm debian echo ran
docker container prune -f

## run
docker run --name x debian nope
docker run --name y debian /etc/passwd
docker run --name x debian true
docker run --rm --network nope debian true
docker run --rm --network host -p 80:80 debian echo ok
docker run --rm --network none debian ip -o link
docker run --rm debian ip -o addr
docker run --rm -v /data debian sh -c 'mount | grep -c /data'
docker run --rm -v $PWD/hostdir:/d:ro debian sh -c 'touch /d/x'
docker run --rm --memory 1m debian true
docker run --rm -it debian true
echo hello | docker run -i --rm debian cat
docker run --rm --privileged debian grep Cap /proc/self/status
docker run --rm --read-only debian touch /x
docker run --rm --cap-drop ALL debian grep Cap /proc/self/status
docker run --rm debian grep -E 'Cap|Seccomp|NoNew' /proc/self/status
docker run --rm debian mount
docker run --rm debian ls -l /dev
docker run --rm debian env
docker run --rm debian cat /etc/hosts /etc/resolv.conf /etc/hostname
docker run --rm debian sh -c 'ulimit -a'
docker run --rm --init debian ps
docker run --rm -u web debian id
docker run --rm -u 5:6 debian id
docker run --rm -u nope debian id
docker run --rm --gpus all debian true
docker run --rm --pull never nopeimage true
docker run -d --name l1 debian sleep 1000
docker run --rm --link l1:alias debian cat /etc/hosts
docker run --rm --network container:l1 debian hostname
docker attach nope
docker create --name cc debian true
docker start -a cc
docker container ls -a
docker rm -f l1 cc x y
docker container prune -f
docker swarm init
docker service ls
docker node ls
docker plugin ls
